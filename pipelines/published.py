"""A job's folder at a URL: what the steps made, copied there when each is done.

URL/.steps/NAME.json is copied last, and within an artifact its manifest is: whoever finds either
finds all that it speaks of. A job that is run on another machine goes on from what is there.
"""

from __future__ import annotations

import json
import posixpath
import shutil
from pathlib import Path

import pyarrow.fs as pafs

from embedcomp.artifact.artifact import MANIFEST
from embedcomp.errors import EmbedcompError
from embedcomp.support.files import remove, replacing
from embedcomp.support.filesystems import opened, write_whole

STEPS = ".steps"


class CannotPublish(EmbedcompError):
    """What a step made cannot be copied."""


class Published:
    """The copy at `url` of the job's folder.

    Raises:
        BadSettings: nothing knows such a URL.
    """

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url.rstrip("/"), folder
        self._fs, self._root = opened(url)

    def place(self, output: Path) -> str:
        """The URL of what is in the job's folder."""
        return f"{self.url}/{self._relative(output)}"

    def _relative(self, output: Path) -> str:
        return output.relative_to(self.folder).as_posix()

    def fetch(self) -> None:
        """Bring the steps that are done there and not known here."""
        records = pafs.FileSelector(posixpath.join(self._root, STEPS), allow_not_found=True)
        for info in self._fs.get_file_info(records):
            record = self.folder / STEPS / posixpath.basename(info.path)
            if info.is_file and not record.exists():
                text = self._read(info.path)
                self._fetch(json.loads(text)["output"])
                with replacing(record) as fresh:
                    fresh.write_bytes(text)

    def _fetch(self, output: str) -> None:
        source = posixpath.join(self._root, output)
        remove(self.folder / output)
        with replacing(self.folder / output) as fresh:
            if self._fs.get_file_info(source).is_file:
                self._download(source, fresh)
                return
            for info in self._fs.get_file_info(pafs.FileSelector(source, recursive=True)):
                if info.is_file:
                    self._download(info.path, fresh / posixpath.relpath(info.path, source))

    def _download(self, source: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open_input_stream(source) as stream, file.open("wb") as sink:
            shutil.copyfileobj(stream, sink, 1 << 20)

    def put(self, output: Path, record: Path) -> None:
        """Copy what a step made, and then its record, unless that is there already.

        Raises:
            CannotPublish: it cannot be written. What was there is then as it was, or has no record.
        """
        there = posixpath.join(self._root, STEPS, record.name)
        try:
            known = self._read(there) if self._fs.get_file_info(there).is_file else b""
            if known == record.read_bytes():
                return
            if known and json.loads(known)["output"] == self._relative(output):
                self._fs.delete_file(there)  # of what is to be replaced
            self._put(output)
            self._fs.create_dir(posixpath.dirname(there), recursive=True)
            write_whole(self._fs, there, record.read_bytes())
        except OSError as error:
            raise CannotPublish(
                f"{self.place(output)} cannot be written ({error}); {output} is whole: run the "
                "same job again to copy it"
            ) from error

    def _put(self, output: Path) -> None:
        target = posixpath.join(self._root, self._relative(output))
        if output.is_file():
            self._upload(output, target)
            return
        if self._fs.get_file_info(target).type == pafs.FileType.Directory:
            self._fs.delete_dir(target)
        files = sorted(file for file in output.rglob("*") if file.is_file())
        for file in sorted(files, key=lambda file: file.name == MANIFEST):
            self._upload(file, posixpath.join(target, file.relative_to(output).as_posix()))

    def _upload(self, file: Path, target: str) -> None:
        self._fs.create_dir(posixpath.dirname(target), recursive=True)
        with file.open("rb") as source, self._fs.open_output_stream(target) as sink:
            shutil.copyfileobj(source, sink, 1 << 20)

    def _read(self, file: str) -> bytes:
        with self._fs.open_input_stream(file) as stream:
            return bytes(stream.read())
