//! The commands people type, in kubectl's manners, on top of the HTTP client.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong use. Results go to standard output, everything else to standard error. Nothing here decides
//! anything about agents: `up` starts the controller, all other commands ask a server.

mod apply;
mod audit;
mod change;
mod demo;
mod describe;
mod doctor;
mod events;
mod get;
mod kill;
mod logs;
mod output;
mod spawn;
mod up;
mod wait;

use crate::api::names::Namespace;
use crate::api::names::Secret;
use crate::client::{Client, ClientError};
use crate::config::{ConfigError, state_folder};
use crate::store::Kind;
use crate::telemetry::LogFormat;
use clap::{Args, CommandFactory, Parser, Subcommand};
use output::out;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs AI coding agents the way Kubernetes runs pods: declare an agent for a git repository, get a verified push.
#[derive(Parser, Debug)]
#[command(
    name = "mosaic",
    version,
    max_term_width = 120,
    after_help = "Begin with `mosaic demo`; then `mosaic up` and `mosaic spawn --help`."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Where the server is, and how to talk to it.
#[derive(Args, Debug)]
struct Global {
    /// Address of the server [default: the one that runs on the state folder]
    #[arg(long, global = true, env = "MOSAIC_SERVER", value_name = "URL", help_heading = "Global options")]
    server: Option<String>,
    /// File that holds the server's token [default: MOSAIC_TOKEN, then `token` in the state folder]
    #[arg(long, global = true, env = "MOSAIC_TOKEN_FILE", value_name = "FILE", help_heading = "Global options")]
    token_file: Option<PathBuf>,
    /// State folder [default: $XDG_STATE_HOME/mosaic, else ~/.local/state/mosaic]
    #[arg(long, global = true, env = "MOSAIC_STATE", value_name = "FOLDER", help_heading = "Global options")]
    state: Option<PathBuf>,
    /// Namespace
    #[arg(
        short,
        long,
        global = true,
        env = "MOSAIC_NAMESPACE",
        default_value = "default",
        value_name = "NAME",
        value_parser = namespace,
        help_heading = "Global options"
    )]
    namespace: String,
    /// What to log, such as `info`, `warn` or `mosaic=debug` [default: info for `up`, else warn]
    #[arg(long, global = true, env = "MOSAIC_LOG", value_name = "FILTER", help_heading = "Global options")]
    log: Option<String>,
    /// How to log [default: text on a terminal, else json]
    #[arg(long, global = true, env = "MOSAIC_LOG_FORMAT", value_enum, help_heading = "Global options")]
    log_format: Option<LogFormat>,
}

fn namespace(text: &str) -> Result<String, String> {
    Namespace::new(text).map(|namespace| namespace.to_string()).map_err(|error| error.to_string())
}

impl Global {
    fn state(&self) -> Result<PathBuf, Failure> {
        Ok(state_folder(self.state.clone(), |name| std::env::var_os(name))?)
    }

    fn client(&self) -> Result<Client, Failure> {
        let token = match (&self.token_file, std::env::var("MOSAIC_TOKEN")) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|e| Failure::usage(format!("failed to read the token file {}: {e}", path.display())))?;
                Some(Secret::new(text.trim()))
            }
            (None, Ok(token)) if !token.trim().is_empty() => Some(Secret::new(token.trim())),
            (None, _) => None,
        };
        Ok(Client::locate(self.server.as_deref(), token, &self.state()?)?)
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start the controller and its server on this machine
    Up(up::Up),
    /// See the whole job on a sample project: a gate rejects, the agent mends it, a verified push
    Demo(demo::Demo),
    /// Start an agent on a repository
    Spawn(spawn::Spawn),
    /// Make or change agents from files
    Apply(apply::Apply),
    /// Show agents
    Get(get::Get),
    /// Show one agent with everything that was seen of it
    Describe(describe::Describe),
    /// Show what an agent prints
    Logs(logs::Logs),
    /// Show what happened
    Events(events::Events),
    /// Show the change that an agent has made so far
    Diff(logs::Diff),
    /// Wait until something is so
    Wait(wait::Wait),
    /// Show how many agents wait, run and are done, and who is next
    Queue,
    /// Ask the server whether it is healthy, for health checks
    Health,
    /// Kill one agent or all of them
    Kill(kill::Kill),
    /// Kill an agent if it runs, and remove its record
    Delete(kill::Delete),
    /// Stop an agent and keep its tree
    Suspend(change::Suspend),
    /// Let a suspended agent go on
    Resume(change::Resume),
    /// Change the priority of an agent
    Patch(change::Patch),
    /// Show or release halts
    Halt {
        #[command(subcommand)]
        command: kill::HaltCommand,
    },
    /// Show what this machine can do for sandboxes, and what would help
    Doctor(doctor::Doctor),
    /// Check the record of what happened
    Audit {
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    /// Print the custom resource definitions, for `kubectl apply -f -`
    Crd {
        /// Instead: a service account with exactly the rights that --store kube needs, in the namespace given by -n
        #[arg(long)]
        rbac: bool,
    },
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// Why a command ended without success.
#[derive(Debug)]
pub enum Failure {
    /// It was tried and failed: exit code 1.
    Failed {
        /// In one sentence.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// It was used wrongly: exit code 2.
    Usage(String),
}

impl Failure {
    fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    fn message(&self) -> &str {
        match self {
            Self::Failed { message, .. } | Self::Usage(message) => message,
        }
    }

    /// Prints it and gives the exit code.
    #[must_use]
    pub fn report(self) -> ExitCode {
        let (message, hint, code) = match self {
            Self::Failed { message, hint } => (message, hint, 1),
            Self::Usage(message) => (message, None, 2),
        };
        eprintln!("error: {message}");
        if let Some(hint) = hint {
            eprintln!("hint: {hint}");
        }
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed { hint: error.hint(), message: error.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Runs the command.
/// # Errors
/// The command failed or was used wrongly.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let filter = global.log.clone().unwrap_or_else(|| if matches!(command, Command::Up(_)) { "info" } else { "warn" }.to_owned());
    crate::telemetry::start_logging(global.log_format, &filter).map_err(Failure::Usage)?;
    match command {
        Command::Up(up) => up.run(&global).await,
        Command::Demo(demo) => demo.run(&global).await,
        Command::Spawn(spawn) => spawn.run(&global).await,
        Command::Apply(apply) => apply.run(&global).await,
        Command::Get(get) => get.run(&global).await,
        Command::Describe(describe) => describe.run(&global).await,
        Command::Logs(logs) => logs.run(&global).await,
        Command::Events(events) => events.run(&global).await,
        Command::Diff(diff) => diff.run(&global).await,
        Command::Wait(wait) => wait.run(&global).await,
        Command::Queue => get::queue(&global).await,
        Command::Health => get::health(&global).await,
        Command::Kill(kill) => kill.run(&global).await,
        Command::Delete(delete) => delete.run(&global).await,
        Command::Suspend(suspend) => suspend.run(&global).await,
        Command::Resume(resume) => resume.run(&global).await,
        Command::Patch(patch) => patch.run(&global).await,
        Command::Halt { command } => command.run(&global).await,
        Command::Doctor(doctor) => doctor.run(&global),
        Command::Audit { command } => command.run(&global),
        Command::Crd { rbac: true } => {
            out!("{}", crate::store::kube::rbac_yaml(&global.namespace).trim_end());
            Ok(())
        }
        Command::Crd { rbac: false } => {
            out!("{}---\n{}", crate::api::schema::crd_yaml(Kind::Agent), crate::api::schema::crd_yaml(Kind::Halt).trim_end());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mosaic", &mut script);
            output::bytes(&script);
            Ok(())
        }
        Command::Version => {
            out!("mosaic {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}
