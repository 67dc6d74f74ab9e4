"""A file is written whole or not at all."""

import pytest

from hrt.errors import ArtifactError, InputError
from hrt.support.atomic_files import check_writable, replacing


class TestReplacing:
    def test_writes_and_leaves_nothing_else(self, tmp_path):
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
            assert not (tmp_path / "a").exists()
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"new")]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_any_failure_of_the_writer_keeps_the_old_file(self, error, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        with pytest.raises(error), replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise error
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]

    def test_a_failure_of_the_system_is_typed(self, tmp_path):
        with pytest.raises(ArtifactError, match="No space"), replacing(tmp_path / "a", failure=ArtifactError):
            raise OSError(28, "No space left on device")
        assert not list(tmp_path.iterdir())

    def test_two_writers_do_not_meet(self, tmp_path):
        with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
            first.write(b"first")
            second.write(b"second")
        assert (tmp_path / "a").read_bytes() == b"first"  # the one that ended last

    def test_names_relative_to_the_current_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with replacing("a") as file:
            file.write(b"x")
        assert (tmp_path / "a").read_bytes() == b"x"


class TestCheckWritable:
    def test_refuses_what_cannot_become_a_file(self, tmp_path):
        (tmp_path / "a").touch()
        for path, force in (
            (tmp_path / "a", False),
            (tmp_path, True),
            (tmp_path / "no" / "a", True),
            ("/dev/null", True),
        ):
            with pytest.raises(InputError, match=str(path)):
                check_writable(path, force)

    def test_allows_the_rest(self, tmp_path):
        (tmp_path / "a").touch()
        assert check_writable(tmp_path / "a", True) == (tmp_path / "a").resolve()
        assert check_writable(tmp_path / "b", False) == tmp_path.resolve() / "b"
