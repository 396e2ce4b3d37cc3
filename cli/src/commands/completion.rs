//! `orch completion SHELL`: what makes a shell complete commands and flags.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// For which shell
    shell: Known,
}

/// Docker's three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Known {
    Bash,
    Fish,
    Zsh,
}

/// Without the daemons, which nobody types, and without `help`, which has all commands once more: most of the script.
fn typed(line: &clap::Command) -> clap::Command {
    let visible = line.get_subcommands().filter(|command| !command.is_hide_set());
    let top = clap::Command::new("orch").version("").disable_version_flag(true).args(line.get_arguments().cloned());
    without_help(top.subcommands(visible.cloned()))
}

fn without_help(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

/// Prints the script. `line` is the whole command line.
pub(crate) fn completion(args: &CompletionArgs, line: &clap::Command) -> anyhow::Result<()> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Fish => Shell::Fish,
        Known::Zsh => Shell::Zsh,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut typed(line), "orch", &mut script);
    Ok(io::stdout().write_all(&script)?)
}
