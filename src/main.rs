//! The `cepa` binary: parses the command line and hands over to one subcommand.
//!
//! In: arguments, environment, configuration files. Out: the process exit code.
//! Called by: a person, systemd, the rig.

fn main() -> std::process::ExitCode {
    cepa::cli::main()
}
