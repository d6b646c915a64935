r"""Fetches five recorded sentences, with transcripts and alignments, to try the speech front end.

    python -m experiments.fetch_speech --output=data/librivox

They are of Jane Austen's "Sense and Sensibility", read for LibriVox (public domain), and lie in the
source package of `pocketsphinx` (BSD), 34 MB. pip downloads it, checks its SHA-256, and only then
asks the package's build tool for its metadata; it is not built, and nothing in it is run. `--sdist`
takes a package that is there already. The output gets `recordings/NAME.wav` and `.txt`, and
`alignments/NAME.json`: words with start and end, as WhisperX writes them.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

from experiments.common import cli
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path
from lst_jax.files import check_regular, new_directory, refuse_to_replace, write_json
from lst_jax.strict_json import parse_json

_OUTPUT = define_path("output", "Folder of the recordings, new or empty.", required=True)
_SDIST = define_path("sdist", "The source package, where it is there already.")

_VERSION = "5.1.1"
_SHA256 = "675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355"
_FOLDER = f"pocketsphinx-{_VERSION}/test/data/librivox"
_NAMES = tuple(
    f"sense_and_sensibility_01_austen_64kb-{number}"
    for number in ("0870", "0880", "0890", "0920", "0930")
)


def main(argv: list[str]) -> None:
    """Fetches as the flags say."""
    cli.check_no_arguments(argv)
    output = pathlib.Path(_OUTPUT.value)
    check_writable(output.parent)
    with tempfile.TemporaryDirectory() as folder, new_directory(output, refuse_to_replace) as made:
        given = _SDIST.value
        sdist = pathlib.Path(given) if given else _download(pathlib.Path(folder))
        _unpack(sdist, made)
    print(f"wrote {output}: {len(_NAMES)} recordings")


def _download(folder: pathlib.Path) -> pathlib.Path:
    """Returns the source package; pip checks its hash before it opens it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"pocketsphinx=={_VERSION} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary=pocketsphinx", "--require-hashes", f"--requirement={requirements}"]
    done = subprocess.run(
        [*command, f"--dest={folder}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ValueError(f"pip could not download pocketsphinx {_VERSION}: {lines[-1]}")
    return folder / f"pocketsphinx-{_VERSION}.tar.gz"


def _unpack(sdist: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the recordings of a source package, if it is the one that is expected."""
    check_regular(sdist)
    with sdist.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise ValueError(
            f"{sdist} has SHA-256 {found}, expected {_SHA256}, pocketsphinx {_VERSION}"
        )
    (output / "recordings").mkdir()
    with tarfile.open(sdist) as archive:
        for name in _NAMES:
            for suffix in ("wav", "txt"):
                path = output / "recordings" / f"{name}.{suffix}"
                path.write_bytes(_member(archive, f"{name}.{suffix}"))
            words = parse_json(_member(archive, f"{name}.json").decode())["w"]
            spoken = [
                {
                    "word": re.sub(r"\(\d+\)$", "", word["t"]),  # the number of a pronunciation
                    "start": word["b"],
                    "end": round(word["b"] + word["d"], 3),
                }
                for word in words
                if not word["t"].startswith("<")  # silence, and the sentence's ends
            ]
            write_json(output / "alignments" / f"{name}.json", {"segments": [{"words": spoken}]})


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"{_FOLDER}/{name}")
    assert file is not None  # the hash is that of an archive in which it is a file
    return file.read()


if __name__ == "__main__":
    cli.run_main(main)
