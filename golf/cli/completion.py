"""`golf completion`: prints the script that makes a shell complete golf's words."""

from __future__ import annotations

from golf.common.errors import ConfigError, did_you_mean

PAGE = """golf completion bash|zsh|fish

Prints a script for your shell. It asks `golf __complete` for candidates: commands, config groups and their options,
dotted keys, flags, and run folders. Sourced once, it holds for the session:

  eval "$(golf completion bash)"                                       (or in ~/.bashrc)
  eval "$(golf completion zsh)"                                        (in ~/.zshrc, after compinit)
  golf completion fish > ~/.config/fish/completions/golf.fish
"""

BASH = r"""# tab completion of golf for bash; load it with: eval "$(golf completion bash)"
_golf() {
    local line="${COMP_LINE:0:COMP_POINT}" word head IFS=$' \t\n'
    local -a words
    read -r -a words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    word="${words[${#words[@]}-1]}"
    IFS=$'\n'
    COMPREPLY=($("${words[0]}" __complete -- "${words[@]:1}" 2> /dev/null))
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        head="${word%"${word##*=}"}"  # bash takes what follows the last = for a word of its own
        COMPREPLY=("${COMPREPLY[@]#"$head"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=./,] ]]; then
        compopt -o nospace 2> /dev/null
    fi
}
complete -F _golf golf
"""

ZSH = r"""#compdef golf
# tab completion of golf for zsh; load it after compinit with: eval "$(golf completion zsh)"
_golf() {
    local -a found
    found=("${(@f)$("${words[1]}" __complete -- "${(@)words[2,CURRENT-1]}" "$PREFIX" 2> /dev/null)}")
    compadd -Q -S '' -- ${(M)found:#*[=./,]}
    compadd -Q -- ${found:#*[=./,]}
}
compdef _golf golf
"""

FISH = r"""# tab completion of golf for fish; save it as ~/.config/fish/completions/golf.fish
function __golf_complete
    set -l words (commandline -opc)
    $words[1] __complete -- $words[2..-1] (commandline -ct) 2> /dev/null
end
complete -c golf -f -a '(__golf_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def run(argv: list[str]) -> int:
    """Print a script. Raises ConfigError for a shell that there is none for."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    if len(argv) > 1 or argv[0] not in SCRIPTS:
        raise ConfigError(f"golf completion {' '.join(argv)}: name one shell {did_you_mean(argv[0], SCRIPTS)}")
    print(SCRIPTS[argv[0]], end="")
    return 0
