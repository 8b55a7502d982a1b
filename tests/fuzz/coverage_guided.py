"""Coverage-guided fuzzing of one target, for as long as one likes.

    python3.11 -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris==3.0.0 -e .
    /tmp/fuzz/bin/python tests/fuzz/coverage_guided.py TARGET [CORPUS] [-max_total_time=300 and other libFuzzer
    arguments]

TARGET is one of `tests/fuzz/targets.py`: batch, events, head, anchor, payload, job, stats, key, location, arguments.
atheris is no dependency of the project, not even of its tests: it has wheels for few Pythons, and CI runs the same
targets with Hypothesis. An input that fails is written to the current folder as `crash-*`; give it an `@example` in
test_fuzz_bytes.py once it is mended.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import atheris  # noqa: E402

with atheris.instrument_imports(include=["ledgerq", "msgpack", "ulid", "urllib"]):
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target that the command line names, beginning with the seeds that Hypothesis has too."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(
            f"usage: coverage_guided.py TARGET [CORPUS] [libFuzzer arguments]; TARGET is one of {', '.join(TARGETS)}"
        )
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory(prefix="ledgerq-seeds-") as folder:
        for i, seed in enumerate(seeds(name)):
            (Path(folder) / str(i)).write_bytes(seed)
        given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        # New inputs go to the first folder, seeds are read from the last.
        corpus = given or [tempfile.mkdtemp(prefix="ledgerq-corpus-")]
        options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
        atheris.Setup([sys.argv[0], *options, *corpus, folder], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
