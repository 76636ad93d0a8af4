"""Records of what rules are made from and have made, digests of files, and turns: one by one."""

import logging
import multiprocessing
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import rule_main
from outlier_atlas import digests, inputs, locks, products
from outlier_atlas.digests import NOT_READABLE, SETTLED_NS, Digests
from outlier_atlas.files import DamagedFileError, read_record, write_record
from outlier_atlas.inputs import CHANGE, LONG_AGO, Inputs, Purpose
from outlier_atlas.turns import Turns

pytestmark = pytest.mark.usefixtures("own_logging")


class Rule:
    """A rule with one output, as Snakemake would run it: where an input is newer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "manifests" / "inputs" / "rule.json"
        self.products = folder / "manifests" / "outputs" / "rule.json"
        self.output = folder / "output"
        self.remembered = None
        self.said = []

    def stale(self, settings, purpose=Purpose.MAKE, remembers=True):
        """Whether it would run: Snakemake compares times, then bytes with those it remembers."""
        records = Inputs(purpose, lambda name, why: self.said.append(f"{name}: {why}"))
        record = Path(records.record(self.record, lambda: {"settings": settings, "files": {}}))
        if not self.output.exists() or not self.products.exists():
            return True
        oldest = min(self.output.stat().st_mtime_ns, self.products.stat().st_mtime_ns)
        if record.stat().st_mtime_ns <= oldest:
            return False
        return not remembers or record.read_bytes() != self.remembered

    def run(self):
        """Run it with the record that is there."""
        time.sleep(0.01)
        self.products.unlink(missing_ok=True)
        self.output.write_text("made")
        products.write(self.products, [self.output], inputs.digest_of(self.record))
        self.remembered = self.record.read_bytes()


@pytest.fixture
def rule(tmp_path):
    made = Rule(tmp_path)
    assert made.stale({"a": 1})
    made.run()
    return made


LOOK = Purpose.LOOK


@pytest.mark.parametrize("remembers", [True, False])
def test_a_rule_is_stale_after_a_change_and_not_after_it_was_taken_back(rule, remembers):
    assert not rule.stale({"a": 1}, remembers=remembers)
    before = rule.record.read_bytes()
    assert rule.stale({"a": 2}, LOOK, remembers)
    assert rule.record.read_bytes() == before
    assert rule.said == ["rule: a 1 → 2"]
    # A run that is killed before the rule.
    assert rule.stale({"a": 2}, remembers=remembers)
    assert rule.stale({"a": 2}, LOOK, remembers)
    assert not rule.stale({"a": 1}, LOOK, remembers)
    assert not rule.stale({"a": 1}, remembers=remembers)
    assert rule.stale({"a": 2}, remembers=remembers)
    rule.run()
    for purpose in (LOOK, Purpose.MAKE):
        assert not rule.stale({"a": 2}, purpose, remembers)
        assert rule.stale({"a": 1}, purpose, remembers)


def test_what_another_checkout_made_meanwhile_is_seen(rule):
    """Snakemake remembers the bytes of the record as they were before."""
    of_this_checkout = rule.remembered
    assert rule.stale({"a": 2})
    rule.run()
    rule.remembered = of_this_checkout
    assert rule.stale({"a": 1})
    assert rule.stale({"a": 1}, LOOK)


@pytest.mark.parametrize("remembers", [True, False])
def test_a_touched_or_copied_record_makes_nothing_stale(rule, remembers):
    later = time.time() + 60
    os.utime(rule.record, (later, later))
    for purpose in (LOOK, Purpose.MAKE):
        assert not rule.stale({"a": 1}, purpose, remembers)
    assert rule.record.stat().st_mtime == LONG_AGO


def test_a_first_record_is_the_same_in_every_run_and_no_other_is(rule, tmp_path):
    other = Rule(tmp_path / "other")
    other.stale({"a": 1})
    assert other.record.read_bytes() == rule.record.read_bytes()
    rule.stale({"a": 2})
    rule.run()
    assert CHANGE in read_record(rule.record)


@pytest.mark.parametrize("purpose", [LOOK, Purpose.MAKE])
def test_missing_or_damaged_files_run_a_rule_again(rule, purpose):
    rule.output.unlink()
    assert rule.stale({"a": 1}, purpose)
    assert rule.said == [f"rule: {rule.output} missing"]
    rule.stale({"a": 1})
    rule.run()
    rule.products.write_text("{")
    assert rule.stale({"a": 1}, purpose)
    rule.stale({"a": 1})
    rule.run()
    rule.record.write_text("{")
    assert not rule.stale({"a": 1}, purpose), "the products say what they were made from"


def test_a_dry_run_of_nothing_reads_no_file_of_the_user(tmp_path):
    def never():
        raise AssertionError("read")

    record = Inputs(LOOK, print).record(tmp_path / "m" / "inputs" / "rule.json", never)
    assert Path(record).exists()
    assert not (tmp_path / "m").exists()


def test_a_job_takes_the_record_that_is_there(tmp_path):
    path = tmp_path / "m" / "inputs" / "rule.json"
    assert Inputs(Purpose.JOB, print).record(path, dict) == str(path)
    assert not path.parent.exists()


def run_job(folder, main, **more):
    """A rule's script, as Snakemake runs it."""

    class Named(list):
        def __init__(self, **files):
            super().__init__(
                file
                for name in files.values()
                for file in ([name] if isinstance(name, str) else name)
            )
            self._files = files

        def get(self, name, default=None):
            return self._files.get(name, default)

    given = {"input": Named(**more.get("input", {})), "output": Named(**more.get("output", {}))}
    log = folder / "logs" / "a_rule.log"
    log.parent.mkdir(exist_ok=True)
    rule_main.run(main, SimpleNamespace(rule="a_rule", threads=1, log=[str(log)], **given))


def test_a_job_records_what_it_made_and_the_next_one_checks_it(rule, tmp_path, capsys):
    table, record = tmp_path / "tables" / "a.csv", tmp_path / "manifests" / "outputs" / "a.json"
    table.parent.mkdir()

    def made(job):
        table.write_text("1,2\n")

    run_job(
        tmp_path, made, input={"inputs": str(rule.record)},
        output={"tables": [str(table)], "products": str(record)},
    )  # fmt: skip
    assert products.made_from(record) == inputs.digest_of(rule.record)
    reads = {"tables": [str(table)], "products": [str(record)]}
    run_job(tmp_path, lambda job: None, input=reads)
    table.write_text("1,3\n")
    assert [damage.path for damage in products.damaged(record)] == [table]

    def never(job):
        raise AssertionError("it was read")

    with pytest.raises(SystemExit):
        run_job(tmp_path, never, input=reads)
    line = f"a_rule: {table}: damaged (it is not the file that was written); run again: it will be"
    assert line in capsys.readouterr().err
    assert not table.exists(), "so that Snakemake has it made again"
    assert products.missing(record) == [table]


def test_a_renamed_run_keeps_its_records(tmp_path):
    run = tmp_path / "results" / "before"
    (run / "tables").mkdir(parents=True)
    (run / "tables" / "a.csv").write_text("1")
    products.write(run / "manifests" / "outputs" / "rule.json", [run / "tables" / "a.csv"], "x")
    now = run.rename(run.with_name("now"))
    record = now / "manifests" / "outputs" / "rule.json"
    assert products.missing(record) == [] == list(products.damaged(record))
    (now / "tables" / "a.csv").write_text("2")
    with pytest.raises(DamagedFileError, match=r"now/tables/a\.csv"):
        products.check([record], [now / "tables" / "a.csv"])


@pytest.fixture
def counted(monkeypatch):
    """Which files are read."""
    read, digest = [], digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path.name) or digest(path))
    return read


def test_a_file_is_read_again_only_where_it_may_have_changed(tmp_path, counted, monkeypatch):
    cache, file = tmp_path / "digests.json", tmp_path / "file"
    file.write_text("one")
    files = {"file": file}
    first = Digests(cache).of(files)
    assert not cache.exists(), "a second change within the same tick would not be seen"
    later = time.time_ns() + 2 * SETTLED_NS
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)
    assert Digests(cache).of(files) == first
    assert counted == ["file", "file"]
    assert Digests(cache).of(files) == first
    assert Digests(cache, keep=False).of(files) == first
    assert counted == ["file", "file"]
    stamp = file.stat()
    file.write_text("two")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    other = Digests(cache).of(files)
    assert other != first
    known = Digests(cache)
    assert known.of(files) == other
    known.clear()
    assert known.of(files) == other
    assert counted == ["file"] * 4


def test_what_cannot_be_read_has_no_digest(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    names = ("fifo", "folder", "missing")
    found = Digests(tmp_path / "cache.json").of({name: tmp_path / name for name in names})
    assert found == dict.fromkeys(names, NOT_READABLE)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"files": {"file": [1, 2, 3, 4, "x"]}}'])
def test_a_damaged_cache_is_no_cache(tmp_path, content):
    file, cache = tmp_path / "file", tmp_path / "cache.json"
    file.write_text("one")
    cache.write_bytes(content)
    assert Digests(cache).of({"file": file}) == Digests().of({"file": file})


def take_a_turn(folder, begin, events):
    """Another run: waits for its turn, and says how it went."""
    begin.wait()
    made = folder / "model.json"
    turns = Turns(folder / "locks", "second", events.put)
    events.put(turns.take("fetch", made, made.exists))


def test_the_second_run_waits_until_the_first_one_has_made_it_and_makes_nothing(tmp_path):
    context, made = multiprocessing.get_context("fork"), tmp_path / "model.json"
    begin, events = context.Event(), context.Queue()
    # Forked first: it would have the lock with us.
    second = context.Process(target=take_a_turn, args=(tmp_path, begin, events))
    second.start()
    turns = Turns(tmp_path / "locks", "first", print)
    assert not turns.take("fetch", made, made.exists)
    turns.plan([(3, ["other"]), (7, [str(made)])])
    begin.set()
    said = rf"waiting for process {os.getpid()} on \S+ \(run first\), which makes {made}"
    assert re.fullmatch(said, events.get(timeout=60))
    finished = {"event": "job_finished"}
    assert turns.ended(logging.makeLogRecord(finished | {"job_id": 3}))
    assert second.is_alive()
    made.touch()
    assert turns.ended(logging.makeLogRecord(finished | {"job_id": 7}))
    assert events.get(timeout=60) is True
    second.join()
    assert turns.take("fetch", made, made.exists)


def test_a_turn_that_no_planned_job_needs_is_given_back(tmp_path):
    turns = Turns(tmp_path / "locks", "first", print)
    assert not turns.take("fetch", tmp_path / "model", lambda: False)
    turns.plan([(1, ["other"])])
    lock = tmp_path / "locks" / "fetch.turn"
    assert not locks.is_held(lock)


def test_what_depends_on_something_that_is_made_again_has_a_turn_too(tmp_path):
    turns = Turns(tmp_path / "locks", "first", print)
    assert not turns.take("model", tmp_path / "model", lambda: False)
    assert not turns.take("weights", tmp_path / "weights", lambda: True)
    assert locks.is_held(tmp_path / "locks" / "weights.turn")


def test_records_of_equal_content_are_equal(tmp_path):
    write_record(tmp_path / "a", {"settings": {"a": (1, 2)}})
    assert inputs.digest(read_record(tmp_path / "a")) == inputs.digest({"settings": {"a": [1, 2]}})
