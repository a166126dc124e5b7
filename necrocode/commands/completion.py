"""necrocode completion: the lines that teach a shell our commands and options."""

from __future__ import annotations

import click

from necrocode.door import Door, verb

_VARIABLE = "_NECROCODE_COMPLETE"
_WHERE = {
    "bash": 'eval "$(necrocode completion bash)"     # in ~/.bashrc',
    "zsh": 'eval "$(necrocode completion zsh)"      # in ~/.zshrc, after compinit',
    "fish": "necrocode completion fish > ~/.config/fish/completions/necrocode.fish",
}


@verb("completion")
@click.argument("shell", type=click.Choice(list(_WHERE)))
def command(door: Door, shell: str) -> None:
    """Print what makes SHELL complete necrocode's commands, options and their values.

    \b
    eval "$(necrocode completion bash)"     # in ~/.bashrc
    eval "$(necrocode completion zsh)"      # in ~/.zshrc, after compinit
    necrocode completion fish > ~/.config/fish/completions/necrocode.fish"""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    # Its source() would first ask the bash of the path for its version, which is not the one that will read this.
    complete = kind(click.get_current_context().find_root().command, {}, "necrocode", _VARIABLE)
    script = complete.source_template % complete.source_vars()
    if door.as_json:
        return door.emit({"shell": shell, "use": _WHERE[shell], "script": script})
    return door.show(script)
