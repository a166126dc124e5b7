"""After the work: its branch pushed when that was asked for, and its artifacts stored."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from necrocode import git
from necrocode.agent_runner.artifacts import ArtifactUploader, contents_of
from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.desk import Ordered
from necrocode.agent_runner.exceptions import ArtifactUploadError
from necrocode.agent_runner.models import PushResult, RunnerResult
from necrocode.errors import GitFailed

logger = logging.getLogger(__name__)

Tell = Callable[..., None]
"""Tells one event of the run: its kind, and its facts."""


class Patience(Protocol):
    """What `threading.Event.wait` is."""

    def wait(self, timeout: float | None = None) -> bool: ...


def push(config: RunnerConfig, order: Ordered, result: RunnerResult, stop: Patience, tell: Tell) -> None:
    """The commit to the branch of that name, forward only, so that nothing of others is ever overwritten.

    A push that fails is tried again as `git_retry_config` says, and then fails the run; the work stays on its
    branch."""
    cwd, policy = order.repository, config.git_retry_config.policy
    commit = result.commits[-1] if result.commits else git.branch_tip(result.branch_name, cwd=cwd) or ""
    for tried in range(policy.retries + 1):
        try:
            git.run("push", config.remote, f"{commit}:refs/heads/{result.branch_name}", cwd=cwd)
        except GitFailed as error:
            result.push_result = PushResult(False, result.branch_name, commit, tried, str(error))
            result.success, result.error, result.error_kind = False, str(error), "push"
            if tried == policy.retries or stop.wait(policy.delay(tried)):
                return
            logger.warning("push failed, trying again: %s", error)
            tell("attempt.retried", attempt=f"{order.attempt}.push.{tried + 1}", error=str(error))
        else:
            result.push_result = PushResult(True, result.branch_name, commit, tried)
            result.success, result.error, result.error_kind = True, None, ""
            return


def store(config: RunnerConfig, order: Ordered, result: RunnerResult, tell: Tell) -> None:
    """Diff, log and tests into the artifact store. What cannot be stored is told, and takes nothing back."""
    tests = asdict(result.test_result) if result.test_result else None
    told = ("success", "branch_name", "commits", "error")
    facts = {"runner_id": result.runner_id, **{name: getattr(result, name) for name in told}}
    uploader = ArtifactUploader(config.artifact_store)
    try:
        contents = dict(contents_of(Path(order.folder), tests))
        result.artifacts = uploader.upload_artifacts(order.task.spec, order.task.id, contents, facts)
    except (ArtifactUploadError, OSError) as error:
        logger.warning("artifacts were not stored: %s", error)
        return tell("error.recorded", error=str(error))
    tell("artifacts.recorded", count=len(result.artifacts), bytes=sum(one.size_bytes for one in result.artifacts))
