"""Nipype's MultiProc with worker processes that may be killed: it is said, and the rest goes on.

The process pool of the standard library, on which MultiProc rests, is broken as a whole when one
of its processes is killed, and MultiProc then waits for ever for what was running. Here each
worker has a pipe of its own. When a worker dies the pipe ends, so its step fails, and no other.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from bidsapp.interfaces.base import note
from bidsapp.problems import Problem, TryAgain, is_full, problem_of
from bidsapp.stopping import Stopped

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext

    from bidsapp.resources import Limit


#: GB; a step that needs more gets a fresh process, without what earlier steps have left in it
#: (libraries, unreturned memory: about 0.4 GB after a T1w image was corrected).
HUNGRY = 2.0


class Died(Exception):
    """A worker ended before its step; ``exit_code`` as in multiprocessing, -9 for SIGKILL."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f'a worker ended with {exit_code}')
        self.exit_code = exit_code


class Worker:
    """A process that computes one step after another."""

    def __init__(self, context: BaseContext) -> None:
        self._pipe, theirs = context.Pipe()
        # Not a daemon: a step may start processes of its own.
        self.process = context.Process(target=serve, args=(theirs, str(Path.cwd())))  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()  # so that the worker's death is the end of the pipe

    def give(self, *job: Any) -> None:
        """Start a step: the arguments of Nipype's ``run_node``."""
        with suppress(BrokenPipeError):  # it died while idle, which `answer` says
            self._pipe.send(job)

    def answer(self) -> dict[str, Any] | None:
        """What ``run_node`` returned, None while it is at work. Raises Died."""
        if not self._pipe.poll():
            return None
        try:
            result: dict[str, Any] = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise Died(self.process.exitcode) from None
        return result

    def end(self) -> None:
        """Let it finish the step it is at, if any, and wait."""
        self._pipe.close()
        self.process.join()


def serve(pipe: Connection, folder: str) -> None:
    """Compute what comes through ``pipe`` until its other end is closed."""
    process_initializer(folder)
    while True:
        try:
            job = pipe.recv()
            pipe.send(answer_to(*job))
        except (EOFError, ConnectionError):  # nobody waits for more
            return


def answer_to(node: Any, updatehash: bool, taskid: int) -> dict[str, Any]:
    """What Nipype's `run_node` gives; where its own files cannot be written, why."""
    try:
        answer: dict[str, Any] = run_node(node, updatehash, taskid)
    except Exception as error:
        before = error.__context__  # Nipype looks for a result that it could not write
        cause = before if isinstance(before, OSError) and is_full(before) else error
        problem = problem_of(cause, f'{node.name} in {node.output_dir()}')
        with suppress(OSError):  # as likely where the disk is full: it is said without a file too
            note(Path(node.output_dir()), problem)
        return {'result': None, 'traceback': [str(problem)], 'taskid': taskid}
    return answer


class WorkersPlugin(MultiProcPlugin):
    """Nipype's MultiProc, scheduling and arguments included, on workers of the above kind."""

    def __init__(self, plugin_args: dict[str, Any], limit: Limit) -> None:
        super().__init__(plugin_args)
        self._context = multiprocessing.get_context(self.plugin_args.get('mp_context'))
        self._limit = limit
        self._idle: list[Worker] = []
        self._at_work: dict[int, tuple[Worker, Any]] = {}

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; no worker is left behind.

        Nipype collects garbage each time it looks whether a step can start, five times a second
        with processors to spare. What is there before (libraries, above all) is left out of that:
        to walk through it took as much time as a small step.
        """
        gc.collect()
        gc.freeze()
        try:
            super().run(graph, config, updatehash)
        except (Stopped, TryAgain, KeyboardInterrupt):
            for worker, _ in self._at_work.values():
                worker.process.terminate()
            raise
        finally:
            gc.unfreeze()
            for worker in [*self._idle, *(worker for worker, _ in self._at_work.values())]:
                worker.end()

    def _sort_jobs(self, jobids: Any, scheduler: str = 'tsort') -> Any:
        """Steps of runs that come first go first, so that few are under way and lie on the disk."""
        if scheduler == 'mem_thread':
            return super()._sort_jobs(jobids, scheduler)
        first: dict[str, int] = {}
        for number, node in enumerate(self.procs):
            first.setdefault(node.fullname.split('.')[1], number)
        return sorted(jobids, key=lambda k: (first[self.procs[k].fullname.split('.')[1]], k))

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        worker = self._idle.pop() if self._idle else None
        if worker is not None and node.mem_gb > HUNGRY:
            worker.end()
            worker = None
        worker = worker or Worker(self._context)
        worker.give(node, updatehash, self._taskid)
        self._at_work[self._taskid] = worker, node
        return self._taskid

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        worker, node = self._at_work[taskid]
        try:
            result = worker.answer()
        except Died as death:
            problem = self._explained(node, death.exit_code)
            folder = Path(node.output_dir())
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                note(folder, problem)
            return {'result': None, 'traceback': [str(problem)], 'taskid': taskid}
        if result is not None:
            self._idle.append(worker)
        return result

    def _clear_task(self, taskid: int) -> None:
        del self._at_work[taskid]

    def _explained(self, node: Any, exit_code: int | None) -> Problem:
        if exit_code != -signal.SIGKILL:
            how = _named(exit_code)
            return Problem(
                f'{node.name}: its process ended by {how}, which the step did not expect.'
            )
        fewer = f', or let less run at once: --nprocs below {self.processors}, or a lower --mem'
        return TryAgain(
            f'{node.name} was killed (SIGKILL), as the system does where memory runs out. Its '
            f'need was estimated at {node.mem_gb:.1f} GB; all steps together may take '
            f'{self.memory_gb:.1f} GB ({self._limit.source}). Give the job more memory'
            f'{fewer if self.processors > 1 else ""}.'
        )


def _named(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f'exit code {exit_code}'
