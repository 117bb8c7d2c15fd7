"""A controller, an agent and the command line, started as the README's five-minute start does it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = Path(os.environ["HOLDFAST_BENCH_PROGRAMS"])
READY_WITHIN_S = 30


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Fleet:
    """One controller and one agent in a folder of their own; ended when the `with` block ends."""

    def __init__(self, folder, environment=None):
        self.folder = Path(folder)
        self.port = free_port()
        self.environment = {**os.environ, **(environment or {}), "HOME": str(self.folder / "home")}
        self.processes = {}

    def __enter__(self):
        (self.folder / "home").mkdir(parents=True)
        self.write("repository.key", secrets.token_hex(16) + "\n")
        self.start_controller()
        self.enroll_agent()
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes.values()):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- the steps of the README

    def start_controller(self):
        self.write(
            "controller.yaml",
            f"api: holdfast/v1\ngrpc: {{ listen: 127.0.0.1:{self.port} }}\ntls: {{ names: [localhost, 127.0.0.1] }}\n"
            f"data_dir: {self.folder / 'controller'}\n",
        )
        token, ca = self.folder / "operator.token", self.folder / "ca.pem"
        config = ("--config", self.folder / "controller.yaml")
        self.run("holdfast-controller", "init", *config, "--token-file", token, "--ca-file", ca)
        self.start("controller", "holdfast-controller", "run", *config)
        self.environment |= {
            "HOLDFAST_SERVER": f"https://127.0.0.1:{self.port}",
            "HOLDFAST_TOKEN_FILE": str(token),
            "HOLDFAST_CA_FILE": str(ca),
        }
        self.wait_for(lambda: self.try_cli("whoami").returncode == 0, "the controller")

    def enroll_agent(self):
        data_dir, token = self.folder / "agent", self.folder / "enroll.token"
        self.write("agent.yaml", f"api: holdfast/v1\ndata_dir: {data_dir}\nallow: {{ restore_paths: [{self.folder.parent}] }}\n")
        enrollment = json.loads(self.cli("agent", "enroll", "bench", "-o", "json"))["items"][0]
        self.write(token.name, enrollment["token"])
        where = ("--controller", f"https://127.0.0.1:{self.port}", "--name", "bench", "--ca-pin", enrollment["ca_pin"])
        self.run("holdfast-agent", "enroll", *where, "--data-dir", data_dir, "--token-file", token)
        self.start_agent()

    def start_agent(self, environment=None):
        self.start("agent", "holdfast-agent", "run", "--config", self.folder / "agent.yaml", environment=environment)
        self.wait_for(lambda: b"online" in self.try_cli("agent", "list").stdout, "the agent")

    @contextmanager
    def without_verification(self):
        """The agent does not compare what it encoded with what it read, as restic with --no-extra-verify."""
        self.stop_agent()
        self.start_agent({"HOLDFAST_AGENT__VERIFY_ENCODING": "false"})
        try:
            yield
        finally:
            self.stop_agent()
            self.start_agent()

    def stop_agent(self):
        self.processes["agent"].send_signal(signal.SIGTERM)
        self.processes["agent"].wait(timeout=20)
        self.wait_for(lambda: b"online" not in self.try_cli("agent", "list").stdout, "the end of the agent", of=["controller"])

    def add_repository(self, name):
        key = self.folder / "repository.key"
        self.cli("repo", "add", name, "--url", f"file://{self.repository(name)}", "--key-file", key)

    def declare(self, name, source):
        """Makes a repository, and declares a source of the same name that backs up to it."""
        self.add_repository(name)
        self.write(f"{name}.yaml", f"api: holdfast/v1\nsources:\n  {name}: {{ agent: bench, to: [{name}], {source} }}\n")
        self.cli("apply", "-f", self.folder / f"{name}.yaml", "--yes")

    # --- commands that are measured

    def backup(self, name, kind):
        return [PROGRAMS / "holdfast", "backup", "run", name, "--type", kind, "--wait"]

    def restore(self, name, target):
        return [PROGRAMS / "holdfast", "restore", "run", name, "--to", "latest", "--into", target, "--wait"]

    def restore_delta(self, name):
        return [PROGRAMS / "holdfast", "restore", "run", name, "--in-place", "--delta", "--confirm", name, "--reason", "comparison", "--wait"]

    def check(self, name):
        return [PROGRAMS / "holdfast", "repo", "check", name, "--read-data", "--wait"]

    def copy(self, name, to):
        return [PROGRAMS / "holdfast", "repo", "copy", name, to, "--wait"]

    # --- helpers

    def repository(self, name):
        return self.folder / "repositories" / name

    def daemons(self):
        return {name: process.pid for name, process in self.processes.items()}

    def cli(self, *arguments):
        finished = self.try_cli(*arguments)
        if finished.returncode != 0:
            raise SystemExit(f"holdfast {arguments}: {finished.stderr.decode()}")
        return finished.stdout.decode()

    def try_cli(self, *arguments):
        return subprocess.run([PROGRAMS / "holdfast", *map(str, arguments)], env=self.environment, capture_output=True, check=False)

    def run(self, program, *arguments):
        argv = [str(part) for part in (PROGRAMS / program, *arguments)]
        finished = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise SystemExit(f"{argv} ended with {finished.returncode}\n{finished.stdout}{finished.stderr}")

    def start(self, name, program, *arguments, environment=None):
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [PROGRAMS / program, *map(str, arguments)], env=self.environment | (environment or {}), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait_for(self, ready, what, of=("controller", "agent")):
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready():
            for name, process in self.processes.items():
                if name in of and process.poll() is not None:
                    raise SystemExit(f"the {name} ended:\n{(self.folder / f'{name}.log').read_text()[-4000:]}")
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} was not ready after {READY_WITHIN_S} s")
            time.sleep(0.05)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
