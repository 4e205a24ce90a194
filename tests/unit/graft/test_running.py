from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from graft.errors import StartError
from graft.running import RECORD, find_running, only_platform, remove_record, stop_running, write_record


def test_record_is_found_until_removed(tmp_path):
    assert find_running(tmp_path) is None
    write_record(tmp_path, "http://127.0.0.1:1")
    running = find_running(tmp_path)
    assert running is not None
    assert (running.url, running.pid) == ("http://127.0.0.1:1", os.getpid())
    remove_record(tmp_path)
    assert find_running(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", '{"url": "u", "pid": 999999999, "process_started_s": 0}'])
def test_torn_or_stale_record_counts_as_none(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    assert find_running(tmp_path) is None


def test_reused_pid_is_not_mistaken_for_the_platform(tmp_path):
    (tmp_path / RECORD).write_text(json.dumps({"url": "u", "pid": os.getpid(), "process_started_s": 1.0}))
    assert find_running(tmp_path) is None


def test_second_platform_of_a_home_folder_is_refused(tmp_path):
    code = "import sys; from pathlib import Path; from graft.running import only_platform\n"
    code += "with only_platform(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StartError, match=f"process {holder.pid}"), only_platform(tmp_path):
            pass
        holder.stdin.close()
    with only_platform(tmp_path):
        pass


def test_stop_ends_the_recorded_process(tmp_path):
    code = "import sys; from pathlib import Path; from graft.running import write_record\n"
    code += "write_record(Path(sys.argv[1]), 'u'); print('up', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        running = stop_running(tmp_path)
        assert running is not None
        assert running.pid == process.pid
    assert stop_running(tmp_path) is None


def test_stop_is_patient_for_as_long_as_the_platform_may_drain(tmp_path):
    code = "import signal, sys, time; from pathlib import Path; from graft.running import write_record\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit()))\n"
    code += "write_record(Path(sys.argv[1]), 'u', drain_s=20.0); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        running = stop_running(tmp_path, timeout_s=0.0)
        assert running is not None
        assert running.drain_s == 20.0


def test_process_that_nobody_has_reaped_counts_as_stopped(tmp_path):
    code = "import sys; from pathlib import Path; from graft.running import write_record\n"
    code += "write_record(Path(sys.argv[1]), 'u'); print('up', flush=True); import time; time.sleep(60)"
    stop = "import sys; from pathlib import Path; from graft.running import stop_running\n"
    stop += "print(stop_running(Path(sys.argv[1]), timeout_s=20).pid)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        # This process, its parent, does not wait for it, as a container without an init does not.
        stopped = subprocess.run([sys.executable, "-c", stop, tmp_path], capture_output=True, text=True)
        assert stopped.stdout == f"{process.pid}\n", stopped.stderr
        assert find_running(tmp_path) is None
