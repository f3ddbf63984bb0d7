"""The warm start: runs that are forks, and every way in which that can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import warm, warm_key

ROOT = Path(__file__).parent.parent

# What runs in place of Prefect's engine: it says who it is and does what it is told.
STANDIN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

def note(*words):
    with Path(os.environ["NOTES"]).open("a") as notes:
        notes.write(json.dumps(words) + "\\n")

what, _, how = os.environ.get("PREFECT__DO", "exit:0").partition(":")
if what == "report":
    ignored = [n for n in (1, 2, 3, 15) if signal.getsignal(n) == signal.SIG_IGN]
    note(dict(os.environ), os.getcwd(), sys.path[0], __name__, sys.stdin.read(), ignored,
         sorted(os.listdir("/proc/self/fd")))
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
if what == "kill":
    os.kill(os.getpid(), int(how))
if what == "sleep":
    if how:
        signal.signal(int(how), lambda *_: sys.exit(7))
    sleeper = subprocess.Popen(["sleep", "60"])
    note(os.getpid(), os.getppid(), sleeper.pid)
    time.sleep(60)
if what == "who":
    note(os.getpid(), os.getppid())
if what == "draw":
    import random
    note(random.random())
if what == "call":
    __import__(how).main(note)
sys.exit(int(how) if what == "exit" else 0)
"""


class Place:
    """A runtime folder, an environment, and a stand-in for the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        self.notes = folder / "notes"
        self.runtime = folder / "run" / "tracefleet"
        self.runtime.parent.mkdir()
        self.cwd = folder / "cwd"
        self.cwd.mkdir()
        (folder / "standin.py").write_text(STANDIN)
        # A checkout of its own: the real one may be edited while this runs.
        for name in warm_key.PACKAGES:
            (folder / name).mkdir()
            for path in [ROOT / name / "__init__.py", *(ROOT / name).glob("warm*.py")]:
                shutil.copy(path, folder / name)
        # Coverage warns on stderr of processes that import nothing of ours; it has no use here.
        plain = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
        self.environment = {
            **plain,
            "XDG_RUNTIME_DIR": str(self.runtime.parent),
            "PYTHONPATH": str(folder),
            "NOTES": str(self.notes),
            "TRACEFLEET_WARM_IDLE_SECONDS": "30",
        }

    def start(self, do: str, *preload: str, **more: Any) -> subprocess.Popen[str]:
        environment = {**self.environment, "PREFECT__DO": do, **more.pop("environment", {})}
        command = [sys.executable, "-m", "flows.warm", "standin", *preload]
        own = more.pop("preexec_fn", lambda: None)

        def as_from_a_terminal() -> None:
            for number in warm.FORWARDED:  # a job in the background of a script ignores some
                signal.signal(number, signal.SIG_DFL)
            own()

        process = subprocess.Popen(
            command,
            preexec_fn=as_from_a_terminal,
            env=environment,
            cwd=self.cwd,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for path in self.sockets():
            retire(path)
        wait_for(lambda: not self.sockets(), 5)
        shutil.rmtree(self.folder)

    def run(self, do: str, *preload: str, **more: Any) -> tuple[int, str, str]:
        process = self.start(do, *preload, **more)
        out, err = process.communicate("to stdin", timeout=60)
        return process.returncode, out, err

    def noted(self, count: int = 1) -> list[Any]:
        """The last thing that a run noted, once there are so many."""
        lines = wait_for(lambda: self._lines(count))
        return list(json.loads(lines[-1]))

    def _lines(self, count: int) -> list[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return lines if len(lines) >= count else []

    def module(self, name: str, text: str) -> str:
        (self.folder / f"{name}.py").write_text(text)
        return name

    def sockets(self) -> list[Path]:
        return sorted(self.runtime.glob("*.socket"))

    def key(self, *preload: str) -> Path:
        """Where the server of the next run listens."""
        code = (
            "import os; from flows import warm_key; "
            f"print(warm_key.identity({['standin', *preload]}, dict(os.environ)))"
        )
        key = subprocess.check_output(
            [sys.executable, "-c", code], env=self.environment, cwd=self.cwd, text=True
        )
        return self.runtime / f"{key.strip()}.socket"


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def ended(*pids: int) -> bool:
    return all(
        not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        for pid in pids
    )


def retire(path: Path) -> None:
    body = b'{"retire": true}'
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
        connection.sendall(struct.pack("!I", len(body)) + body)


@pytest.fixture
def place() -> Iterator[Place]:
    # Not pytest's folder: a socket's path has 107 characters.
    place = Place(Path(tempfile.mkdtemp(prefix="warm-")))
    yield place
    place.close()


@pytest.mark.parametrize("warmth", ["on", "off"])
@pytest.mark.parametrize(
    ("do", "code"),
    [("exit:0", 0), ("exit:3", 3), ("exit:255", 255), ("kill:15", -15), ("kill:9", -9)],
)
def test_a_run_ends_as_a_cold_one(place, do, code, warmth):
    place.environment["TRACEFLEET_WARM"] = warmth
    assert place.run(do) == (code, "", "")
    assert bool(place.sockets()) == (warmth == "on")


def test_a_run_gets_what_its_worker_gave_its_command(place):
    place.run("who")
    server = place.noted()[1]
    environment = {"PREFECT__CONTROL_TOKEN": "a secret", "PWD": "/elsewhere"}
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    code, out, err = place.run("report", environment=environment, preexec_fn=ignore)
    assert (code, out, err) == (0, "to stdout\n", "to stderr\n")
    theirs, cwd, path, name, stdin, ignored, open_files = place.noted(2)
    wanted = {**place.environment, **environment, "PREFECT__DO": "report"}
    assert {k: v for k, v in theirs.items() if k != "LC_CTYPE"} == wanted
    assert cwd == path == str(place.cwd)
    assert (name, stdin, ignored) == ("__main__", "to stdin", [signal.SIGINT])
    # None of the server's own files, sockets and locks; the last one lists them.
    assert open_files == ["0", "1", "2", "3"]
    assert place.sockets() == [place.key()]
    started_with = Path(f"/proc/{server}/environ").read_bytes()
    assert b"PREFECT__" not in started_with
    assert b"NOTES=" in started_with
    assert b"a secret" not in b"".join(path.name.encode() for path in place.runtime.iterdir())


def test_runs_draw_different_random_numbers(place):
    place.run("draw")
    place.run("draw")
    first, second = place._lines(2)
    assert first != second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_run(place, number):
    process = place.start(f"sleep:{int(number)}")
    place.noted()
    process.send_signal(number)
    assert process.wait(10) == 7


def test_a_run_without_handlers_dies_of_the_signal_and_so_does_its_command(place):
    process = place.start("sleep")
    run, _, _ = place.noted()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    assert ended(run)


def test_a_killed_command_takes_its_run_along(place):
    first, second = place.start("sleep"), place.start("sleep")
    place.noted(2)
    runs = [json.loads(line) for line in place._lines(2)]
    first.kill()
    first.wait()
    dead = wait_for(lambda: [run for run in runs if ended(run[0], run[2])])
    (alive,) = [run for run in runs if run not in dead]
    assert not ended(alive[0])
    second.kill()
    wait_for(lambda: ended(alive[0], alive[2]))


def test_a_killed_server_takes_its_run_along_and_nothing_runs_twice(place):
    process = place.start("sleep")
    run, server, sleeper = place.noted()
    os.kill(server, signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "it is not started again" in err
    wait_for(lambda: ended(run, sleeper))
    assert len(place._lines(1)) == 1
    # What the dead server left behind is in nobody's way.
    assert place.sockets()
    assert place.run("exit:4") == (4, "", "")


def test_the_kernel_ends_a_run_whose_server_and_command_can_not(place):
    process = place.start("sleep")
    run, server, sleeper = place.noted()
    process.send_signal(signal.SIGSTOP)
    assert not ended(run)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: ended(run))
    os.kill(sleeper, signal.SIGKILL)


def test_many_commands_at_once_start_one_server(place):
    processes = [place.start("who") for _ in range(10)]
    assert [process.wait(60) for process in processes] == [0] * 10
    assert [process.stderr.read() for process in processes if process.stderr] == [""] * 10
    runs = [json.loads(line) for line in place._lines(10)]
    assert len({run for run, _ in runs}) == 10
    assert len({server for _, server in runs}) == 1


@pytest.mark.parametrize("fault", ["mode", "owner", "link"])
def test_a_folder_that_others_can_write_to_is_not_used(place, fault):
    place.runtime.mkdir(mode=0o700)
    if fault == "mode":
        place.runtime.chmod(0o770)
    elif fault == "link":
        place.runtime.rename(place.folder / "elsewhere")
        place.runtime.symlink_to(place.folder / "elsewhere")
    elif os.geteuid() == 0:
        os.chown(place.runtime, 12345, -1)
    else:
        pytest.skip("only root can give a folder away")
    code, _, err = place.run("exit:5")
    assert code == 5
    assert "expected a folder of user" in err
    assert len(err.splitlines()) == 1
    assert not list(place.runtime.iterdir())


def test_a_server_of_another_user_is_not_spoken_to(place, monkeypatch):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.folder / "socket"))
    listener.listen()
    warm._dial(place.folder / "socket").close()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(warm_key.WarmError, match="expected a server of user 12345"):
        warm._dial(place.folder / "socket")
    listener.close()


def test_another_environment_is_another_server_but_another_run_is_not(place):
    keys = [place.key()]
    for name in ("PREFECT__FLOW_RUN_ID", "PWD", "PREFECT_API_URL"):
        place.environment[name] = "something"
        keys.append(place.key())
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert place.key("json") != keys[3]
    (place.cwd / "prefect.toml").write_text("")
    assert place.key() != keys[3]


def test_few_servers_go_on_living(place):
    for number in range(5):
        place.environment["NUMBER"] = str(number)
        assert place.run("exit:0")[0] == 0
    wait_for(lambda: len(place.sockets()) == 3, 5)
    assert place.key() in place.sockets()


def test_new_code_is_a_new_server_and_the_old_one_ends(place):
    place.environment["TRACEFLEET_WARM_IDLE_SECONDS"] = "2"
    old = place.key()
    place.start("sleep")  # busy, and so never idle
    first = place.noted()[1]
    assert place.sockets() == [old]
    (place.folder / "tasks" / "new.py").write_text("")
    place.start("sleep")
    assert place.noted(2)[1] != first
    wait_for(lambda: not old.exists(), 10)
    assert place.sockets() == [place.key()]


def test_an_idle_server_ends_and_leaves_nothing(place):
    place.environment["TRACEFLEET_WARM_IDLE_SECONDS"] = "0.3"
    place.run("who")
    _, server = place.noted()
    wait_for(lambda: ended(server), 10)
    assert not list(place.runtime.iterdir())


def test_a_busy_server_that_is_asked_to_end_ends_after_its_run(place):
    process = place.start("sleep:15")
    _, server, _ = place.noted()
    retire(place.sockets()[0])
    wait_for(lambda: not place.sockets())
    assert place.run("who")[0] == 0
    assert place.noted(2)[1] != server
    process.terminate()
    assert process.wait(10) == 7
    wait_for(lambda: ended(server), 10)


def test_a_server_that_can_not_start_costs_one_try(place):
    preload = place.module("broken", "raise ImportError('no such luck')")
    code, _, err = place.run("exit:6", preload)
    assert code == 6
    assert "could not start (ImportError: no such luck); starting cold" in err
    code, _, err = place.run("exit:6", preload)
    assert code == 6
    assert "could not start a moment ago (ImportError: no such luck)" in err


THREADED = """
import threading, time
def start():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_server_with_a_second_thread_forks_nothing(place, when):
    text = THREADED + ("start()" if when == "at once" else "")
    if when == "later":
        text += "\nbefore_fork = lambda count=[]: count.append(1) or len(count) > 2 and start()"
        assert place.run("exit:0", place.module("threaded", text)) == (0, "", "")
    code, _, err = place.run("who", place.module("threaded", text))
    assert code == 0
    assert "the server has 2 threads and can't be forked" in err
    assert len(err.splitlines()) == 1
    assert place.noted()[1] == os.getpid()


class _FakeServer:
    """Listens in a server's place and says what it is told to."""

    def __init__(self, place: Place) -> None:
        place.runtime.mkdir(mode=0o700)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place.key()))
        self._listener.listen()

    def serve(self, *words: bytes) -> None:
        connection, _ = self._listener.accept()
        with connection:
            (length,) = struct.unpack("!I", connection.recv(4))
            connection.recv(length, socket.MSG_WAITALL)
            for word in words:
                connection.sendall(word)
                if word == b"ready\n":
                    assert connection.recv(1) == warm.GO

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([b"refused not today\n"], 3, "refused not today; starting cold"),
        ([b"ready\n", b"refused no memory\n"], 3, "no memory; starting cold"),
        ([b"something else\n"], 3, "something else; starting cold"),
        # It may have forked before it died: never a second time.
        ([b"ready\n"], 1, "it is not started again"),
        ([b"ready\n", b"started 0\n"], 1, "it is not started again"),
        ([b"ready\n", b"nonsense\n"], 1, "it is not started again"),
        ([b"ready\n", b"exit nonsense\n"], 1, "ValueError"),
    ],
)
def test_only_a_run_that_never_began_is_started_cold(place, words, code, message):
    server = _FakeServer(place)
    process = place.start("exit:3")
    server.serve(*words)
    server.close()
    _, err = process.communicate(timeout=10)
    assert (process.returncode, message in err) == (code, True), err


HOOKS = """
import multiprocessing
from multiprocessing import forkserver
from tasks.warm import adopt_server
multiprocessing.get_context("forkserver").set_forkserver_preload([])
before_fork, after_fork = forkserver.ensure_running, adopt_server
"""
CHILDREN = """
import multiprocessing, os, signal, sys, time
from multiprocessing import forkserver

def child(queue):
    queue.send((os.getpid(), os.getppid(), len(os.listdir("/proc/self/task"))))

def ask():
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender,))
    process.start()
    found = receiver.recv()
    process.join()
    return [*found, process.exitcode]

context = multiprocessing.get_context("forkserver")

def main(note):
    main_module = sys.modules["__main__"]
    main_module.__spec__ = None
    del main_module.__file__
    server = forkserver._forkserver._forkserver_pid
    first, second = ask(), ask()
    os.kill(server, signal.SIGKILL)
    time.sleep(0.2)
    note(server, os.getpid(), first, second, ask())

def elsewhere(note):
    sys.modules["__main__"].__spec__ = None
    del sys.modules["__main__"].__file__
    sys.modules["tasks"].__file__ = "/elsewhere/tasks/__init__.py"
    note(forkserver._forkserver._forkserver_pid, ask())
"""


def test_a_run_from_another_checkout_has_a_fork_server_of_its_own(place):
    place.module("children", CHILDREN)
    place.module("foreign", "import tasks\nfrom children import elsewhere as main")
    assert place.run("call:foreign", place.module("hooks", HOOKS)) == (0, "", "")
    server, child = place.noted()
    assert child[1] != server
    assert child[2:] == [1, 0]


def test_children_come_from_the_adopted_server_or_from_an_own_one(place):
    place.module("children", CHILDREN)
    assert place.run("call:children", place.module("hooks", HOOKS)) == (0, "", "")
    server, run, first, second, third = place.noted()
    assert first[1:] == second[1:] == [server, 1, 0]
    assert first[0] != second[0]
    assert third[1] not in (server, run)
    assert third[2:] == [1, 0]
    # The next run has a server to adopt again: the warm server looks after it.
    assert place.run("call:children", "hooks") == (0, "", "")
    again = place.noted(2)
    assert again[0] != server
    assert again[2][1] == again[0]


MODELS = """
import os, sys, time
from multiprocessing import forkserver
from pathlib import Path
from tasks.child import Limits, run
from tasks.errors import ConversionCrashedError

def look():
    import torch
    torch.randn(300, 300) @ torch.randn(300, 300)
    return os.getppid(), "prefect" in sys.modules, os.environ["HF_HUB_OFFLINE"]

def sleep():
    Path(os.environ["NOTES"] + ".child").write_text(str(os.getpid()))
    time.sleep(60)

def main(note):
    started = time.monotonic()
    log = Path(os.environ["NOTES"] + ".log")
    found = run(look, limits=Limits(threads=2), log=log, step="look").value
    try:
        run(sleep, limits=Limits(timeout=1.0), log=log, step="sleep")
    except ConversionCrashedError as error:
        reason = error.reason
    note(found, forkserver._forkserver._forkserver_pid, reason, os.environ.get("HF_HUB_OFFLINE"))
    run(sleep, limits=Limits(), log=log, step="sleep")
"""


def test_models_have_their_children_and_limits_in_a_warm_run_too(place):
    place.module("models", MODELS)
    place.environment["PYTHONPATH"] = f"{ROOT}:{place.folder}"
    process = place.start("call:models", "flows.warm_prefect")
    (parent, prefect, offline), server, reason, own = place.noted()
    assert parent == server
    # What is loaded for children that may not reach the network is not in the run, nor is the
    # run's in them.
    assert (prefect, offline, own) == (False, "1", os.environ.get("HF_HUB_OFFLINE"))
    assert reason == "timeout after 1 s"
    marker = place.folder / "notes.child"
    child = wait_for(lambda: not ended(int(marker.read_text())) and int(marker.read_text()))
    process.kill()
    wait_for(lambda: ended(child))
    assert not ended(server)


LOOK_UP = """
import sys
import tasks.errors, tracefleet.errors
kept, spec = tasks.errors, tasks.errors.__spec__
from flows.warm_modules import look_up_again
look_up_again()
assert "tasks" not in sys.modules
if len(sys.argv) > 1:
    sys.path.insert(0, sys.argv[1])
import tasks.errors
import tracefleet.errors
print(tasks.errors is kept, tasks.errors.__spec__ is spec, sys.modules["tasks"].__file__)
"""


def test_a_run_from_another_checkout_gets_that_checkouts_code(tmp_path):
    def look(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", LOOK_UP, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.check_output(command, env=environment, text=True).split()

    (tmp_path / "tasks").mkdir()
    for name in ("__init__", "errors"):
        (tmp_path / "tasks" / f"{name}.py").write_text("")
    assert look() == ["True", "True", str(ROOT / "tasks" / "__init__.py")]
    other = str(tmp_path / "tasks" / "__init__.py")
    assert look(str(tmp_path)) == ["False", "False", other]
