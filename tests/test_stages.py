"""The parts of the terminal's output, one by one: reasons, progress, logs of jobs, the handler."""

import logging
import os
import re
from types import SimpleNamespace

import pytest

from outlier_atlas import products, terminal
from outlier_atlas.changes import changes_in_words
from outlier_atlas.console import CLEAR, PROGRESS, STAGES
from outlier_atlas.inputs import Inputs, Purpose, digest_of
from outlier_atlas.progress import Progress
from outlier_atlas.terminal.findings import finding
from outlier_atlas.terminal.handler import StageHandler
from outlier_atlas.terminal.joblog import JobLog
from outlier_atlas.terminal.reasons import reason
from outlier_atlas.terminal.screen import Screen
from outlier_atlas.terminal.stages import _title


def test_a_stage_that_a_failed_run_did_not_reach_still_tells_the_value_of_its_output(tmp_path):
    """The record of its inputs has the new value already; its products have the old one."""
    path = tmp_path / "manifests" / "inputs" / "rule.json"
    made = tmp_path / "manifests" / "outputs" / "rule.json"

    def reason(value, purpose=Purpose.MAKE):
        inputs = Inputs(purpose, lambda *_: None)
        file = inputs.record(path, lambda: {"settings": {"a": value}, "files": {}})
        return inputs.reason(file, newer=True)

    assert reason(1) is None
    (tmp_path / "output").write_text("made")
    products.write(made, [tmp_path / "output"], digest_of(path))
    for purpose in (Purpose.LOOK, Purpose.MAKE, Purpose.MAKE, Purpose.LOOK):
        assert reason(2, purpose) == "a 1 → 2"
    assert reason(3) == "a 1 → 3"
    assert reason(1) is None
    assert reason(4) == "a 1 → 4"


def test_a_record_without_products_is_a_reason_only_where_it_is_newer(tmp_path):
    """Extraction has no record of products; a lost manifest is not a changed setting."""
    path = tmp_path / "manifests" / "inputs" / "rule.json"

    def reason(value, newer=True):
        inputs = Inputs(Purpose.MAKE, lambda *_: None)
        content = {"settings": {"a": value}, "files": {}}
        return inputs.reason(inputs.record(path, lambda: content, with_products=False), newer)

    assert reason(1) is None
    assert reason(2) == "a 1 → 2"
    assert reason(2) == "a 1 → 2", "after a run that was stopped"
    assert reason(2, newer=False) is None
    assert reason(3, newer=False) == "a 2 → 3"


def test_damaged_records_are_told(tmp_path):
    path = tmp_path / "manifests" / "inputs" / "rule.json"
    made = tmp_path / "manifests" / "outputs" / "rule.json"

    def reason():
        inputs = Inputs(Purpose.MAKE, lambda *_: None)
        file = inputs.record(path, lambda: {"settings": {"a": 1}, "files": {}})
        return inputs.reason(file, newer=True)

    assert reason() is None
    products.write(made, [], "of something else")
    assert reason() == "settings, code or files that it was made from are not known"
    made.write_text("{")
    assert reason() == "the record of its outputs is damaged"


CHANGES = [
    ("detect_outliers", {"detection": {"a": {"b": 1}}}, {"detection": {"a": {"b": None}}},
     "detection.a.b 1 → null"),
    ("create_store", {"chunk_tokens": 1, "dtype": "float32"}, {"chunk_tokens": 2, "dtype": "b"},
     "extraction.advanced.chunk_tokens 1 → 2; model.dtype float32 → b"),
    ("render_report", {"configuration": {"report": {"rows": 1}}},
     {"configuration": {"report": {"rows": 2}}}, "report.rows 1 → 2"),
    ("a", {"sites": ["p", "q"]}, {"sites": ["q", "r"]}, "sites without p and with r"),
    ("a", {"sites": ["p", "q"]}, {"sites": ["q", "p"]}, "sites in another order"),
    ("a", {"s": "x" * 99 + "1"}, {"s": "x" * 99 + "2"}, "s changed"),
    ("a", {"s": "\x1b[2J\n"}, {"s": "https://me:secret@host/"}, "s ␛[2J↵ → https://***@host/"),
    ("a", {str(n): 0 for n in range(5)}, {str(n): 1 for n in range(5)},
     "0 0 → 1; 1 0 → 1; 2 0 → 1; and 2 more"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "before", "now", "words"), CHANGES)
def test_a_change_is_told_by_its_key_with_both_values(rule, before, now, words):
    assert changes_in_words(f"{rule}.x", {"settings": before}, {"settings": now}) == words


def test_changed_files_and_code_are_told_in_words():
    before = {"settings": {}, "code": "1", "files": {"a\n.txt": "1", "b": "1"}}
    now = {"settings": {}, "code": "2", "files": {"a\n.txt": "2", "c": "1"}}
    words = "code changed; the model's file a↵.txt changed; the model's file b is gone; and 1 more"
    assert changes_in_words("fetch_model.slug", before, now) == words


class Stream:
    """A stream that remembers what is written."""

    encoding = "ascii"

    def __init__(self, tty):
        self.written, self._tty = "", tty

    def isatty(self):
        return self._tty

    def write(self, text):
        self.written += text

    def flush(self):
        pass


@pytest.mark.parametrize("tty", [True, False])
def test_progress_is_drawn_on_a_terminal_alone_and_lines_go_above_it(tty, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Stream(tty)
    screen = Screen(stream)
    screen.line("one\x1b[2J → two")
    screen.progress("50 %")
    screen.line("three")
    screen.progress("")
    lines = "one\\u241b[2J \\u2192 two\n"
    assert stream.written == lines + (f"{CLEAR}50 %{CLEAR}three\n" if tty else "three\n")


def test_a_job_leaves_its_progress_in_its_log_and_the_log_of_an_earlier_one_is_left_out(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(STAGES, "1")
    path = tmp_path / "job.log"
    path.write_text("2026-01-01 00:00:00,000 ERROR outlier_atlas: of an earlier run\n")
    log = JobLog(path)
    assert log.read() == [] and log.progress == ""
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("outlier_atlas")
    monkeypatch.setattr(ours, "handlers", [handler])
    monkeypatch.setattr(ours, "propagate", False)
    monkeypatch.setattr(ours, "level", logging.DEBUG)
    monkeypatch.setattr("outlier_atlas.progress.FIRST_SECONDS", 0)
    with Progress(8192, " tokens", "layers 0 to 9") as progress:
        progress.update(4096)
    ours.info("for the log")
    ours.warning("for the user\nin two lines")
    notable = [message.text for message in log.read() if message.notable]
    assert notable == ["for the user\nin two lines"]
    share = r"layers 0 to 9: 50 % of 8,192 tokens, [\d,]+ tokens/s, 0 s left"
    assert re.fullmatch(share, log.progress)
    assert log.read() == []
    ours.error("again")
    assert [message.text for message in log.read()] == ["again"]
    path.write_text("")
    assert log.read() == []
    path.unlink()
    assert log.read() == []


def test_a_script_without_a_terminal_prints_lines_and_draws_no_bar(capsys, monkeypatch, caplog):
    monkeypatch.delenv(STAGES, raising=False)
    monkeypatch.setattr("outlier_atlas.progress.LINE_SECONDS", 0)
    caplog.set_level(logging.INFO, PROGRESS)
    with Progress(4, " chunks", "detecting") as progress:
        progress.update(3)
    assert re.match(r"detecting: 75 % of 4 chunks, ", caplog.messages[0])
    assert capsys.readouterr().err == ""


def job(**given):
    given = {"rule": SimpleNamespace(name="a", script="a.py", message=None), **given}
    return SimpleNamespace(is_norun=False, wildcards_dict={}, **given)


def test_a_finding_is_left_out_where_its_file_is_gone_or_damaged(tmp_path):
    page = tmp_path / "a.txt"
    assert finding([job(output=[str(page)])]) == ""
    page.write_text("{")
    assert finding([job(output=[str(page)])]) == f"{page}, 0.0 KiB"
    model = SimpleNamespace(name="fetch_model", script="fetch_model.py")
    assert finding([job(rule=model, output=[str(page)])]) == ""


def handler(tmp_path, local=True, tty=False):
    """A handler with Snakemake's place for one, and one planned job."""
    settings = SimpleNamespace(quiet=None, dryrun=False)
    why = SimpleNamespace(forced=True, nooutput=False, noio=False, incomplete_output=())
    why.missing_output = why.updated_input = why.updated_input_run = ()
    made = job(output=[], input=[], is_local=False)
    dag = SimpleNamespace(
        needrun_jobs=lambda: [], toposorted=lambda _: [[made]], jobid=lambda _: 3,
        reason=lambda _: why, dependencies={},
    )  # fmt: skip
    default = logging.StreamHandler(Stream(tty))
    workflow = SimpleNamespace(dag=dag, local_exec=local)
    return StageHandler(settings, workflow, lambda *_: None, default), default.stream


def records(reason):
    return SimpleNamespace(purpose=Purpose.MAKE, reason=reason)


def send(to, message, **given):
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, message, (), None)
    record.__dict__.update(given)
    to.handle(record)


@pytest.mark.parametrize("local", [True, False])
def test_a_cluster_shows_what_its_jobs_told_their_logs(local, tmp_path):
    shown, stream = handler(tmp_path, local)
    log = tmp_path / "a.log"
    send(shown, "Job stats", event="run_info")
    send(shown, "", event="job_info", jobid=3, log=[str(log)])
    log.write_text("2026-01-01 00:00:00,000 ERROR outlier_atlas: a: no such column\n")
    told = {"event": "job_error", "jobid": 3, "rule_name": "a", "log": [str(log)]}
    send(shown, "Error in rule a", rule_msg="slurm job 4 failed", **told)
    send(shown, "WorkflowError:\nAt least one job did not complete successfully.", event="error")
    shown.close()
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in stream.written.splitlines()]
    own = [] if local else ["a: no such column"]
    failed = f"a: failed; slurm job 4 failed; log: {log}"
    plan = ["1 job to run:", "  a     1  asked for on the command line", "a: begun"]
    assert lines == [*plan, *own, failed]


def test_a_job_that_was_killed_is_told_by_its_signal(tmp_path):
    shown, stream = handler(tmp_path)
    send(shown, "Job stats", event="run_info")
    script = "CalledProcessError in file a.smk, line 3:\nCommand 'python .snakemake/scripts/t.py'"
    send(shown, f"{script} died with <Signals.SIGKILL: 9>.", event="error")
    told = {"event": "job_error", "jobid": 3, "rule_name": "a", "rule_msg": None, "log": ["a.log"]}
    send(shown, "Error in rule a", **told)
    shown.close()
    assert stream.written.endswith("a: failed; ended by SIGKILL (out of memory?); log: a.log\n")
    assert "CalledProcessError" not in stream.written


def test_a_message_that_is_not_known_is_shown_and_a_reason_is_told_once(tmp_path):
    shown, stream = handler(tmp_path)
    send(shown, "something new of another Snakemake")
    send(shown, "rule: a 1 → 2", **{terminal.REASON: True})
    shown.close()
    assert stream.written == "something new of another Snakemake\n"


def test_another_logger_of_the_user_stays(tmp_path):
    logger = logging.getLogger("snakemake.logging")
    before = logger.handlers
    theirs = logging.NullHandler()
    try:
        logger.handlers = [theirs]
        settings = SimpleNamespace(verbose=False, printshellcmds=False, debug_dag=False)
        settings.show_failed_logs = settings.dryrun = False
        terminal.show_stages(SimpleNamespace(output_settings=settings), records(lambda *_: None))
        assert logger.handlers == [theirs]
        assert STAGES not in os.environ
    finally:
        logger.handlers = before


def test_a_workflow_that_is_used_as_two_modules_is_shown_once(tmp_path, monkeypatch):
    logger = logging.getLogger("snakemake.logging")
    shown, stream = handler(tmp_path)
    monkeypatch.setattr(logger, "handlers", [shown])
    known = {("record", False): "a 1 → 2"}
    settings = SimpleNamespace(output_settings=SimpleNamespace(dryrun=True))
    terminal.show_stages(settings, records(lambda *asked: known.get(asked)))
    assert logger.handlers == [shown]
    planned = shown._workflow.dag.toposorted(None)[0][0]
    planned.input.append("record")
    send(shown, "Job stats", event="run_info")
    assert stream.written == "1 job to run:\n  a     1  a 1 \\u2192 2\n"


def test_a_message_of_another_workflows_rule_is_left_to_snakemake():
    message = "Sort {input} with {wildcards.x}"
    rule = SimpleNamespace(name="sort", script=None, message=message)
    made = job(rule=rule, message="Sort a.txt with b")
    assert _title([made]) == "Sort a.txt with b"
    many = SimpleNamespace(name="a", script=None, message="{{x}} {wildcards.x}, {wildcards.y}")
    jobs = [job(rule=many) for _ in range(3)]
    for n, each in enumerate(jobs):
        each.wildcards_dict = {"x": str(n + 8), "y": "pq"[n % 2]}
    assert _title(jobs) == "{x} 8 to 10, p, q"


@pytest.mark.parametrize("tty", [True, False])
def test_progress_of_jobs_at_work_is_shown_until_they_end(tty, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("outlier_atlas.terminal.handler.TICK_SECONDS", 1000)
    monkeypatch.setattr("outlier_atlas.terminal.handler.LINE_SECONDS", 0)
    shown, stream = handler(tmp_path, tty=tty)
    log = tmp_path / "a.log"
    send(shown, "Job stats", event="run_info")
    send(shown, "", event="job_info", jobid=3, log=[str(log)])
    shown._show_progress()
    before = stream.written
    assert before.endswith("a: begun\n"), "nothing is known yet"
    log.write_text(f"2026-01-01 00:00:00,000 DEBUG {PROGRESS}: layers 0 to 9: 50 %\n")
    shown._show_progress()
    drawn = stream.written.removeprefix(before)
    if tty:
        assert drawn == f"{CLEAR}a: layers 0 to 9: 50 %"
    else:
        assert re.fullmatch(r"\d\d:\d\d:\d\d a: layers 0 to 9: 50 %\n", drawn)
    send(shown, "Finished jobid", event="job_finished", job_id=3)
    send(shown, None, event="progress", done=1, total=1)
    shown._show_progress()
    shown.close()
    clear = re.escape(CLEAR) if tty else ""
    end = rf"{clear}[\d:]{{8}} a: done in 1 s\n[\d:]{{8}} 1 job done in 1 s\n"
    assert re.fullmatch(end, stream.written.removeprefix(before + drawn))


def test_jobs_that_wait_for_others_of_their_rule_have_one_reason_together():
    """Layer groups: the first waits for the tokens, the next for the first."""
    names = ("forced", "incomplete_output", "missing_output", "updated_input", "nooutput", "noio")
    why = SimpleNamespace(**dict.fromkeys(names, ()), updated_input_run=("x",))
    tokens, first, second = (
        SimpleNamespace(rule=SimpleNamespace(name=name), input=[], output=[])
        for name in ("tokenize", "extract", "extract")
    )
    needed = {id(first): [tokens], id(second): [first, tokens]}
    depends = type("", (), {"__getitem__": lambda _, job: needed[id(job)]})()
    dag = SimpleNamespace(reason=lambda _: why, needrun=lambda _: True, dependencies=depends)
    assert reason(dag, [first, second], lambda *_: None) == "after tokenize"
    needed[id(second)] = [first]
    assert reason(dag, [first, second], lambda *_: None) == "after tokenize"
