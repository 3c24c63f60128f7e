//! Child processes that cannot outlive this one.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

/// How a child is asked to end.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Interrupt => libc::SIGINT,
            Self::Terminate => libc::SIGTERM,
        }
    }
}

/// A running child. Dropping it asks the child to end; so does the death of this process.
pub struct Child {
    name: &'static str,
    /// `None` once it has been waited for: its id may belong to another process then.
    pid: Arc<Mutex<Option<u32>>>,
    exited: watch::Receiver<Option<String>>,
    end: Signal,
}

impl Child {
    /// Starts a child in a process group of its own, so that a Ctrl-C in the terminal is not its.
    ///
    /// The kernel ends it with `end` when the *thread* that started it ends, which is why that
    /// thread is one that does nothing else than wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &'static str, mut command: Command, end: Signal) -> io::Result<Self> {
        tie_to_parent(&mut command, end);
        let pid = Arc::new(Mutex::new(None));
        let (tell, exited) = watch::channel(None);
        let (started, hear) = std::sync::mpsc::channel();
        let waiting = Arc::clone(&pid);
        std::thread::Builder::new().name(format!("wait-{name}")).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            *lock(&waiting) = Some(child.id());
            drop(started.send(Ok(())));
            // Waits without reaping, so that the id stays the child's while anyone may signal it.
            let status = wait_then_forget(&mut child, &waiting);
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let _ = tell.send(Some(how));
        })?;
        hear.recv().map_err(io::Error::other)??;
        Ok(Self { name, pid, exited, end })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it has ended, and how.
    pub fn ended(&self) -> Option<String> {
        self.exited.borrow().clone()
    }

    /// Waits until it ends; says how.
    pub fn exited(&self) -> impl Future<Output = String> + Send + use<> {
        let mut exited = self.exited.clone();
        async move {
            let ended = exited.wait_for(Option::is_some).await;
            ended.ok().and_then(|how| how.clone()).unwrap_or_default()
        }
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(self) {
        self.signal(self.end.number());
        self.exited().await;
    }

    /// Kills it, as a crash would, and waits until it is gone. For tests.
    pub async fn kill(self) {
        self.signal(libc::SIGKILL);
        self.exited().await;
    }

    /// Sends it SIGQUIT, and waits until it is gone. For tests.
    pub(super) async fn quit(self) {
        self.signal(libc::SIGQUIT);
        self.exited().await;
    }

    #[expect(unsafe_code, reason = "kill(2) is safe for a child that has not been waited for")]
    fn signal(&self, number: libc::c_int) {
        if let Some(pid) = *lock(&self.pid)
            && let Ok(pid) = libc::pid_t::try_from(pid)
        {
            // SAFETY: no memory is involved; the lock holds off the wait that would free the id.
            unsafe { libc::kill(pid, number) };
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(self.end.number());
    }
}

fn lock(pid: &Mutex<Option<u32>>) -> std::sync::MutexGuard<'_, Option<u32>> {
    pid.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_then_forget(child: &mut std::process::Child, pid: &Mutex<Option<u32>>) -> io::Result<ExitStatus> {
    await_exit(child.id());
    let mut pid = lock(pid);
    *pid = None;
    child.wait()
}

/// Waits until the child has ended, and leaves it to be waited for.
#[expect(unsafe_code, reason = "waitid(2) with WNOWAIT has no safe wrapper in std")]
fn await_exit(pid: u32) {
    // SAFETY: `info` is a plain structure that the call fills in.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        while libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOWAIT) == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

#[expect(unsafe_code, reason = "a child process must be tied to its parent before it runs")]
fn tie_to_parent(command: &mut Command, end: Signal) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let signal = end.number();
        // SAFETY: prctl is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, signal) == -1 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = end;
}

/// Whether this process is root.
#[expect(unsafe_code, reason = "geteuid(2) has no safe wrapper in std")]
pub fn is_root() -> bool {
    // SAFETY: always succeeds and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// Finds a program: in `directory` if given, else in the usual places, else on the PATH.
pub fn find(program: &str, directory: Option<&Path>, usual: &[PathBuf]) -> Option<PathBuf> {
    let here = |directory: &Path| Some(directory.join(program)).filter(|path| path.is_file());
    if let Some(directory) = directory {
        return here(directory);
    }
    #[expect(clippy::disallowed_methods, reason = "PATH is the system's, not a setting")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    usual
        .iter()
        .find_map(|directory| here(directory))
        .or_else(|| std::env::split_paths(&path).find_map(|dir| here(&dir)))
}

/// A port of loopback that is free now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
