//! Containers of this node, as the worker sees them: make, start, signal, watch, enter, find again, delete.
//!
//! The work is done by one shim process per container ([`crate::shim`]), which outlives the worker; this module writes
//! the shim's configuration, starts it, and talks to its socket. It must never call libcontainer itself: that only
//! works in a process with one thread.
//!
//! ```text
//! let runtime = Runtime::new(&paths, "/orch.slice")?;
//! let container = runtime.create(&plan).await?;         // namespaces, cgroup, rootfs; the program is not running yet
//! container.start().await?;                             // Err: exec: "nosuch": executable file not found in $PATH
//! let exit = container.wait().await?;
//! container.delete().await?;                            // idempotent; then the caller unmounts the rootfs
//! ```

mod plan;

pub use plan::{BindMount, ContainerPlan, DEFAULT_LOG_FILES, DEFAULT_LOG_SIZE_BYTES, ExecRequest, Exit, ImageDefaults, LogFiles};

// Published signatures; bodies follow.
//
// impl Runtime {                                             Clone, Send, Sync
//   pub fn new(paths: &orch_proto::paths::Paths, cgroup_parent: &str) -> Result<Runtime, RuntimeError>
//   pub fn with_shim_command(self, program: PathBuf, args: Vec<OsString>) -> Runtime     tests only; default: /proc/self/exe shim
//   pub async fn create(&self, plan: &ContainerPlan<'_>) -> Result<Container, RuntimeError>
//   pub async fn recover(&self) -> Result<Vec<Recovered>, RuntimeError>   after a worker restart: every container that has a shim folder
//   pub fn logs(log: &LogFiles, options: LogOptions) -> LogStream         also for containers that are gone
// }
// pub enum Recovered { Running(Container) , Created(Container), Exited { task_id: TaskId, container: Container, exit: Exit } }
// impl Container {                                           Clone, Send, Sync
//   pub fn task_id(&self) -> &TaskId; container_id(&self) -> &str; pid(&self) -> u32 (0 when gone); log_files(&self) -> &LogFiles
//   pub async fn start(&self) -> Result<(), RuntimeError>
//   pub async fn kill(&self, signal: i32) -> Result<(), RuntimeError>      Ok when it is gone already
//   pub async fn wait(&self) -> Result<Exit, RuntimeError>                 any number of times; also after the exit; cleans up after a dead shim
//   pub async fn exec(&self, request: &ExecRequest) -> Result<Exec, RuntimeError>
//   pub async fn delete(&self) -> Result<(), RuntimeError>                 SIGKILLs what still runs; removes cgroups and the shim folder
//   pub fn logs(&self, options: LogOptions) -> LogStream                   follow ends when the container has ended
// }
// pub struct Exec { pub pid: u32, pub stdin: Option<ExecStdin: AsyncWrite>, pub stdout: ExecOutput: AsyncRead, pub stderr: Option<ExecOutput> (None with tty), .. }
//   exec.take parts by moving the fields; pub fn resizer(&self) -> Option<Resizer>; Resizer::resize(&self, rows: u16, cols: u16);
//   exec.wait(self) -> Result<i32, RuntimeError>
// pub struct LogOptions { follow: bool, tail: Option<usize>, since: Option<SystemTime>, until: Option<SystemTime> }
// pub struct LogLine { stream: LogSource (Stdout|Stderr), time: SystemTime, line: String /* with its "\n" unless partial */ }
// LogStream: futures::Stream<Item = Result<LogLine, RuntimeError>> + Send + Unpin
// RuntimeError::{NotFound, ..}: `error.exit_code()` -> Option<i32>: 126/127 when the program could not be started
