//! The command line: which words lead where.

use std::{any::TypeId, io::Write as _, process::ExitCode, time::Duration};

use clap::{
    Arg, ArgAction, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use orch_model::Kind;
use orch_proto::paths::Paths;

use crate::{
    commands::{
        ca, cluster, completion, container, container_attach, container_control, container_copy, container_live, data,
        events, exec, image, image_build, image_login, image_registry, info, inspect, logs, network, node, run,
        service, stack, system, volume,
    },
    daemons::{self, Daemon},
    flags,
};

#[derive(Debug, Parser)]
#[command(
    name = "orch",
    version = info::VERSION,
    about = "A container cluster in one program",
    disable_help_subcommand = false,
    // As with Docker, the last of a flag given twice counts.
    args_override_self = true,
    max_term_width = 100,
    disable_version_flag = true,
    arg = version_flag()
)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Initialize a cluster: this node becomes its first manager
    Init(Box<cluster::InitArgs>),
    /// Join a cluster as a worker or manager
    Join(cluster::JoinArgs),
    /// Show or rotate the tokens that nodes join with
    JoinToken(cluster::JoinTokenArgs),
    /// Leave the cluster
    Leave(cluster::LeaveArgs),
    /// Update the cluster's settings
    Update(cluster::UpdateArgs),
    /// Display the root certificate
    Ca(Box<ca::CaArgs>),
    /// Unlock a locked manager
    Unlock,
    /// Show or rotate the key that locked managers are unlocked with
    UnlockKey(cluster::UnlockKeyArgs),
    /// The cluster's commands under Docker's names
    Swarm {
        #[command(subcommand)]
        command: cluster::SwarmCommand,
    },
    /// Manage nodes
    Node {
        #[command(subcommand)]
        command: Option<node::NodeCommand>,
    },
    /// Manage services
    Service {
        #[command(subcommand)]
        command: service::ServiceCommand,
    },
    /// Manage stacks
    Stack {
        #[command(subcommand)]
        command: stack::StackCommand,
    },
    /// Manage networks
    Network {
        #[command(subcommand)]
        command: network::NetworkCommand,
    },
    /// Manage secrets
    Secret {
        #[command(subcommand)]
        command: data::DataCommand,
    },
    /// Manage configs
    Config {
        #[command(subcommand)]
        command: data::DataCommand,
    },
    /// Manage this node's images
    Image {
        #[command(subcommand)]
        command: image::ImageCommand,
    },
    /// List this node's images
    Images(image::LsArgs),
    /// Authenticate to a registry
    Login(image_login::LoginArgs),
    /// Log out from a registry
    Logout(image_login::LogoutArgs),
    /// Download an image from a registry
    Pull(image::PullArgs),
    /// Upload an image to a registry
    Push(image::PushArgs),
    /// Create a tag TARGET that refers to SOURCE
    Tag(image::TagArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(image::SaveArgs),
    /// Load images from a tar archive (docker save or OCI layout) or STDIN
    Load(image::LoadArgs),
    /// Import a root filesystem tar (plain, gzip or zstd) as an image
    Import(image::ImportArgs),
    /// Remove one or more images
    Rmi(image::RmArgs),
    /// Show the history of an image
    History(image_registry::HistoryArgs),
    /// Build an image from a Dockerfile, with buildah or BuildKit
    Build(image_build::BuildArgs),
    /// Manage this node's volumes
    Volume {
        #[command(subcommand)]
        command: volume::VolumeCommand,
    },
    /// Manage this node's containers
    Container {
        #[command(subcommand)]
        command: Box<container::ContainerCommand>,
    },
    /// Create and run a new container on this node
    Run(Box<run::RunArgs>),
    /// Create a new container on this node
    Create(Box<run::CreateArgs>),
    /// Start one or more stopped containers
    Start(container_control::StartArgs),
    /// Stop one or more running containers
    Stop(container_control::StopArgs),
    /// Restart one or more containers
    Restart(container_control::StopArgs),
    /// Kill one or more running containers
    Kill(container_control::KillArgs),
    /// Remove one or more containers
    Rm(container_control::RmArgs),
    /// Rename a container
    Rename(container_control::RenameArgs),
    /// Block until containers stop, then print their exit codes
    Wait(container_control::Named),
    /// List port mappings of a container
    Port(container_control::PortArgs),
    /// Attach local standard input, output, and error streams to a running container
    Attach(container_attach::AttachArgs),
    /// Pause all processes within one or more containers
    Pause(container_control::Named),
    /// Unpause all processes within one or more containers
    Unpause(container_control::Named),
    /// Display a live stream of container(s) resource usage statistics
    Stats(container_live::StatsArgs),
    /// Display the running processes of a container
    Top(container_live::TopArgs),
    /// Inspect changes to files or directories on a container's filesystem
    Diff(container_live::OneContainer),
    /// Copy files/folders between a container and the local filesystem
    Cp(container_copy::CopyArgs),
    /// Get events of this node's containers and volumes and, on a manager, of the cluster
    Events(events::EventsArgs),
    /// Manage what this node keeps
    System {
        #[command(subcommand)]
        command: system::SystemCommand,
    },
    /// List this node's containers
    Ps(container::PsArgs),
    /// Execute a command in a running task or container
    Exec(exec::ExecArgs),
    /// Fetch the logs of a task or container
    Logs(logs::LogsArgs),
    /// Return low-level information on objects of the cluster
    Inspect(inspect::InspectArgs),
    /// Display what is known of this node and its cluster
    Info(info::FormatArgs),
    /// Show the versions
    Version(info::FormatArgs),
    /// Generate the autocompletion script for the specified shell
    Completion(completion::CompletionArgs),
    /// Clusters of network namespaces on this machine
    Lab(orch_lab::LabArgs),
    #[command(flatten)]
    Daemon(Daemon),
}

/// `-v` is Docker's, `-V` clap's.
fn version_flag() -> Arg {
    Arg::new("version").short('v').short_alias('V').long("version").help("Print version").action(ArgAction::Version)
}

/// The whole command line, as it is read.
#[cfg(test)]
pub(crate) fn whole() -> clap::Command {
    as_docker_reads(Line::command())
}

pub(crate) fn main() -> ExitCode {
    let line =
        match as_docker_reads(Line::command()).try_get_matches().and_then(|matches| Line::from_arg_matches(&matches)) {
            Ok(line) => line,
            Err(error) => {
                let _ = error.print();
                // Help and version are not errors; everything else is one, with Docker's exit code.
                return match error.use_stderr() {
                    true => usage_error(&error, std::env::args().skip(1)),
                    false => ExitCode::SUCCESS,
                };
            }
        };
    let outcome = match line.command {
        Command::Daemon(daemon) => daemons::run(daemon).map(|()| ExitCode::SUCCESS),
        Command::Node { command: None } => daemons::supervise().map(|()| ExitCode::SUCCESS),
        Command::Lab(args) => {
            output_may_fail();
            default_sigpipe();
            orch_lab::run(args)
        }
        command => {
            output_may_fail();
            default_sigpipe();
            on_runtime(command)
        }
    };
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "{error:#}");
        ExitCode::FAILURE
    })
}

/// Flags that are there or not take Go's booleans, too (`--rm=true`, `-d=0`), and whoever gives a negative number,
/// size or duration is told that the flag does not take it, not that `-1` or `-1s` is no flag.
fn as_docker_reads(command: clap::Command) -> clap::Command {
    command.mut_args(boolean_or_number).mut_subcommands(as_docker_reads)
}

fn boolean_or_number(arg: Arg) -> Arg {
    let is_boolean = arg.get_value_parser().type_id() == ValueParser::bool().type_id();
    match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .value_name("BOOL")
            .value_parser(flags::is_true),
        ArgAction::Set if is_boolean => arg.value_parser(flags::is_true),
        ArgAction::Set if is_amount(&arg) && !arg.is_positional() => arg.allow_hyphen_values(true),
        ArgAction::Set | ArgAction::Append if !arg.is_positional() => arg.allow_negative_numbers(true),
        _ => arg,
    }
}

fn is_amount(arg: &Arg) -> bool {
    let kind = arg.get_value_parser().type_id();
    [TypeId::of::<Duration>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<f32>()]
        .iter()
        .any(|id| kind == *id)
}

/// Docker's codes: 125 for a flag that is not known or has a wrong value, 1 for a wrong number of arguments or an unknown
/// command. Where a command ends with another program's code, all of our own mistakes are 125, which programs seldom use.
fn usage_error(error: &clap::Error, words: impl Iterator<Item = String>) -> ExitCode {
    let mut words = words.skip_while(|word| word == "container");
    match words.next().as_deref() {
        Some("run" | "create" | "exec") => ExitCode::from(run::NOT_RUN),
        _ if is_about_a_flag(error) => ExitCode::from(run::NOT_RUN),
        _ => ExitCode::FAILURE,
    }
}

fn is_about_a_flag(error: &clap::Error) -> bool {
    let is_flag = |value: &ContextValue| match value {
        ContextValue::String(text) => text.starts_with('-'),
        _ => false,
    };
    match error.kind() {
        ErrorKind::UnknownArgument
        | ErrorKind::InvalidValue
        | ErrorKind::ValueValidation
        | ErrorKind::TooFewValues
        | ErrorKind::TooManyValues
        | ErrorKind::WrongNumberOfValues
        | ErrorKind::NoEquals => error.get(ContextKind::InvalidArg).is_some_and(is_flag),
        _ => false,
    }
}

/// A full disk behind standard output is the world's fault: it gets a sentence and exit code 1, no backtrace. Whoever wrote
/// cannot go on anyhow, and `println!` has no other way to say so.
fn output_may_fail() {
    let bugs = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let words = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        match words.strip_prefix("failed printing to stdout: ") {
            Some(why) => {
                // It may be on the same full disk.
                let _ = writeln!(std::io::stderr(), "cannot write to standard output: {why}");
                std::process::exit(1);
            }
            None => bugs(panic),
        }
    }));
}

fn on_runtime(command: Command) -> anyhow::Result<ExitCode> {
    orch_proto::tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(dispatch(command, &Paths::from_env()));
    // A thread that waits for the keyboard must not keep the program.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command, paths: &Paths) -> anyhow::Result<ExitCode> {
    match command {
        Command::Exec(args) => return exec::run(args, paths).await,
        Command::Run(args) => return run::run(*args, paths).await,
        Command::Stack { command } => return stack::run(command, paths).await,
        Command::Start(args) => return container_control::start(args, paths).await,
        Command::Attach(args) => return container_control::attach(args, paths).await,
        Command::Container { command } => return container::run(*command, paths).await,
        Command::Create(args) => run::create(*args, paths).await,
        Command::Stop(args) => container_control::stop(args, false, paths).await,
        Command::Restart(args) => container_control::stop(args, true, paths).await,
        Command::Kill(args) => container_control::kill(args, paths).await,
        Command::Rm(args) => container_control::remove(args, paths).await,
        Command::Rename(args) => container_control::rename(args, paths).await,
        Command::Wait(args) => container_control::wait(args, paths).await,
        Command::Port(args) => container_control::port(args, paths).await,
        Command::Init(args) => cluster::init(*args, paths).await,
        Command::Join(args) => cluster::join(args, paths).await,
        Command::JoinToken(args) => cluster::join_token(args, paths).await,
        Command::Leave(args) => cluster::leave(args, paths).await,
        Command::Update(args) => cluster::update(args, paths).await,
        Command::Unlock => cluster::unlock(paths).await,
        Command::UnlockKey(args) => cluster::unlock_key(&args, paths).await,
        Command::Ca(args) => ca::ca(&args, paths).await,
        Command::Swarm { command } => cluster::swarm(command, paths).await,
        Command::Node { command: Some(command) } => node::run(command, paths).await,
        Command::Service { command } => service::run(command, paths).await,
        Command::Network { command } => network::run(command, paths).await,
        Command::Secret { command } => data::run(Kind::Secret, command, paths).await,
        Command::Config { command } => data::run(Kind::Config, command, paths).await,
        Command::Image { command } => image::run(command, paths).await,
        Command::Login(args) => image_login::login(args, paths).await,
        Command::Logout(args) => image_login::logout(&args),
        Command::Pull(args) => image::pull(args, paths).await,
        Command::Push(args) => image::push(args, paths).await,
        Command::Tag(args) => image::tag(args, paths).await,
        Command::Save(args) => image::save(args, paths).await,
        Command::Load(args) => image::load(args, paths).await,
        Command::Import(args) => image::import(args, paths).await,
        Command::Rmi(args) => image::remove_all(args, paths).await,
        Command::History(args) => image_registry::history(args, paths).await,
        Command::Build(args) => image_build::build(args, paths).await,
        Command::Images(args) => image::list(args, paths).await,
        Command::Volume { command } => volume::run(command, paths).await,
        Command::Pause(args) => container_live::pause(args, true, paths).await,
        Command::Unpause(args) => container_live::pause(args, false, paths).await,
        Command::Stats(args) => container_live::stats(args, paths).await,
        Command::Top(args) => container_live::top(args, paths).await,
        Command::Diff(args) => container_live::diff(args, paths).await,
        Command::Cp(args) => container_copy::copy(args, paths).await,
        Command::Events(args) => events::events(args, paths).await,
        Command::System { command } => system::run(command, paths).await,
        Command::Ps(args) => container::ps(args, paths).await,
        Command::Logs(args) => logs::logs(args, paths).await,
        Command::Inspect(args) => inspect::run(args, paths).await,
        Command::Completion(args) => completion::completion(&args, &Line::command()),
        Command::Info(args) => info::info(args, paths).await,
        Command::Version(args) => info::version(args, paths).await,
        // `main` has handled these.
        Command::Node { command: None } | Command::Lab(_) | Command::Daemon(_) => Ok(()),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// `orch … | head` ends quietly, as other programs do. A daemon that closes its socket is another matter: that is an
/// error with a text, or nothing at all when it had answered before.
fn default_sigpipe() {
    #[allow(unsafe_code)]
    // SAFETY: no other thread exists yet, and the handler calls only what a signal handler may.
    unsafe {
        let handler: extern "C" fn(libc::c_int) = on_broken_pipe;
        libc::signal(libc::SIGPIPE, handler as libc::sighandler_t);
    }
}

/// Ends the program when the reader of its output is gone.
extern "C" fn on_broken_pipe(signal: libc::c_int) {
    let output = |fd| libc::pollfd { fd, events: 0, revents: 0 };
    let mut outputs = [output(libc::STDOUT_FILENO), output(libc::STDERR_FILENO)];
    #[allow(unsafe_code)]
    // SAFETY: poll and _exit are async-signal-safe; the array outlives the call and its length is given.
    unsafe {
        libc::poll(outputs.as_mut_ptr(), 2, 0);
        if outputs.iter().any(|fd| fd.revents & libc::POLLERR != 0) {
            libc::_exit(128 + signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Line::command().debug_assert();
        as_docker_reads(Line::command()).debug_assert();
    }

    #[test]
    fn switches_take_booleans_and_stand_together() {
        let run = |line: &str| {
            let matches = as_docker_reads(Line::command()).try_get_matches_from(line.split(' '));
            let line =
                matches.and_then(|matches| Line::from_arg_matches(&matches)).map_err(|error| error.to_string())?;
            Ok::<_, String>(format!("{:?}", line.command))
        };
        for (line, shown) in [
            ("orch run -dit busybox", "detach: true"),
            ("orch run -dit busybox", "interactive: true"),
            ("orch run -itd=false busybox", "detach: false"),
            ("orch run busybox", "rm: false"),
            ("orch run --rm busybox", "rm: true"),
            ("orch run --rm=1 busybox", "rm: true"),
            ("orch run --rm=F busybox", "rm: false"),
            ("orch run --rm --rm=false busybox", "rm: false"),
            ("orch run -d=true --read-only=TRUE busybox --rm=false", "read_only: true"),
            ("orch service create -td --init=1 busybox", "init: Some(true)"),
            ("orch service update -qd=0 web", "quiet: true"),
            ("orch service update -qd=0 web", "detach: Some(false)"),
            // Of a container, not of a service: as with Docker.
            ("orch logs --tail -1 web", "tail: Tail(None)"),
            ("orch swarm update --task-history-limit -1", "task_history_limit: Some(18446744073709551615)"),
            ("orch logs -n=some web", "tail: Tail(None)"),
            ("orch logs -n5 web", "tail: Tail(Some(5))"),
        ] {
            let parsed = run(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(parsed.contains(shown), "{line}: {shown} is not in {parsed}");
        }
        for (line, words) in [
            ("orch run --rm=maybe busybox", ["--rm", "'maybe'", "true or false"]),
            ("orch service create --init=yes busybox", ["--init", "'yes'", "true or false"]),
            ("orch service create --replicas -1 busybox", ["--replicas", "'-1'", "whole number"]),
            ("orch service create --restart-delay -1s busybox", ["--restart-delay", "'-1s'", "such as 10s"]),
            ("orch service update --update-max-failure-ratio -.5 web", ["--update-max", "'-.5'", "from 0 to 1"]),
            ("orch run --memory -1g busybox", ["--memory", "'-1g'", "such as 512k"]),
            ("orch run --health-retries -1x busybox", ["--health-retries", "'-1x'", "whole number"]),
            ("orch swarm update --cert-expiry -1h", ["--cert-expiry", "'-1h'", "such as"]),
            ("orch service logs --tail -1 web", ["--tail", "'-1'", "number of lines"]),
        ] {
            let refusal = run(line).unwrap_err();
            assert!(words.iter().all(|word| refusal.contains(word)), "{line}: {refusal}");
        }
    }

    /// Seen with Docker 28.2.
    #[test]
    fn a_wrong_flag_ends_with_125_and_wrong_arguments_with_1() {
        for (line, code) in [
            ("service ls --nope", 125),
            ("secret ls -x", 125),
            ("--nope", 125),
            ("service create --replicas x busybox", 125),
            ("service create --mode x busybox", 125),
            ("service create --replicas", 125),
            ("service create --detach=maybe busybox", 125),
            ("service ls x", 1),
            ("service logs", 1),
            ("service scale", 1),
            ("service nope", 1),
            ("nope", 1),
            ("run", 125),
            ("container exec", 125),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let parsed =
                as_docker_reads(Line::command()).try_get_matches_from([&["orch".to_owned()][..], &words].concat());
            let error = parsed.expect_err(line);
            assert_eq!(usage_error(&error, words.into_iter()), ExitCode::from(code), "{line}: {:?}", error.kind());
        }
    }

    #[test]
    fn dockers_spellings_are_understood() {
        for line in [
            "orch stack deploy -c=compose.yml shop",
            "orch stack deploy shop -c compose.yml",
            "orch stack deploy --compose-file compose.yml",
            "orch service create -d=false --read-only web sh -c x",
            "orch service scale web=5 api=2",
            "orch swarm join-token -q worker",
            "orch service logs -f web",
            "orch exec -it web.1 sh -c 'x'",
            "orch node update --availability drain n1",
            "orch image import web:1 -",
            "orch node",
        ] {
            if let Err(error) = Line::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }
}
