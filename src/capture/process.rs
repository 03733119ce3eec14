//! Processes of other hosts: entering a namespace for good, signals, CPU time.
//!
//! In: process ids, namespaces. Out: signals sent, figures read. Called by: the rig.

#![expect(unsafe_code, reason = "setns, unshare and kill have no safe wrapper here")]

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    process::Command,
    time::Duration,
};

/// Moves this process into a network namespace, names its host, and becomes `command`. Returns
/// only if that fails. The process id stays, so whoever started it can watch and end it.
pub fn become_inside(namespace: &Path, host: &str, command: &mut Command) -> io::Error {
    let enter = || -> io::Result<()> {
        let file = File::open(namespace)?;
        let name = CString::new(host)?;
        // SAFETY: the descriptor is open for the call.
        check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })?;
        // SAFETY: unshare takes no pointers.
        check(unsafe { libc::unshare(libc::CLONE_NEWUTS) })?;
        // SAFETY: the name lives through the call and the length is its own.
        check(unsafe { libc::sethostname(name.as_ptr(), host.len()) })
    };
    match enter() {
        Ok(()) => command.exec(),
        Err(error) => error,
    }
}

/// Asks a process to end (SIGTERM).
///
/// # Errors
/// When it is gone or not ours.
pub fn terminate(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGTERM)
}

/// Ends a process at once (SIGKILL).
///
/// # Errors
/// When it is gone or not ours.
pub fn kill(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGKILL)
}

/// Stops a process where it is (SIGSTOP).
///
/// # Errors
/// When it is gone or not ours.
pub fn pause(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGSTOP)
}

/// Lets it go on (SIGCONT).
///
/// # Errors
/// When it is gone or not ours.
pub fn resume(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGCONT)
}

fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    if pid <= 1 {
        // 0 and -1 would mean whole groups.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill takes no pointers.
    check(unsafe { libc::kill(pid, signal) })
}

/// Makes this process the leader of a session of its own, so that a closed terminal or an
/// interrupt typed there does not reach it.
pub fn leave_terminal() {
    // SAFETY: setsid takes no arguments; it fails harmlessly for a group leader.
    unsafe { libc::setsid() };
}

/// The user that started this process, as the first user namespace sees it.
pub fn real_user() -> u32 {
    // SAFETY: getuid takes no arguments and cannot fail.
    let here = unsafe { libc::getuid() };
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
            let (inside, outside, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
            (here >= inside && here - inside < count).then(|| outside + (here - inside))
        })
        .next()
        .unwrap_or(here)
}

/// The user that this process acts as.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid takes no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a process has used so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct Usage {
    /// Processor time, its own and the kernel's on its behalf.
    pub cpu: Duration,
    /// Memory in RAM, in bytes.
    pub resident: u64,
}

/// Reads what a process has used.
///
/// # Errors
/// When it is gone.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets, and may hold anything.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    // SAFETY: sysconf takes no pointers.
    let (ticks, page) =
        unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    Ok(Usage {
        cpu: Duration::from_secs_f64((number(11) + number(12)) as f64 / ticks.max(1) as f64),
        resident: number(21) * page.max(0) as u64,
    })
}

/// The processor time of the threads of a process that have this name, to the nanosecond: the
/// kernel's ticks are too coarse for a thread that works for moments.
///
/// # Errors
/// When it is gone, or has none, or on a kernel without `schedstat`.
pub fn thread_cpu(pid: u32, name: &str) -> io::Result<Duration> {
    let mut found = None;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // A thread may end between being listed and being asked.
        let read = |file| std::fs::read_to_string(task.join(file));
        let (Ok(comm), Ok(stat)) = (read("comm"), read("schedstat")) else { continue };
        let running = stat.split_whitespace().next().and_then(|word| word.parse().ok());
        if let (true, Some(nanoseconds)) = (comm.trim_end() == name, running) {
            found = Some(found.unwrap_or_default() + Duration::from_nanos(nanoseconds));
        }
    }
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// When a process started, in kernel ticks: with its id, this names it for good.
///
/// # Errors
/// When it is gone.
pub fn started(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields
        .split_whitespace()
        .nth(19)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.resident > 100_000);
        assert!(started(std::process::id()).unwrap() > 0);
        assert!(started(u32::MAX).is_err());
    }

    #[test]
    fn a_thread_is_found_by_its_name() {
        let name = "cepa-busy";
        let busy = || {
            let mut cpu = Duration::ZERO;
            while cpu.is_zero() {
                (0..100_000).for_each(|number| _ = std::hint::black_box(number));
                cpu = thread_cpu(std::process::id(), name).unwrap();
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(busy).unwrap().join().unwrap();
        assert!(thread_cpu(std::process::id(), "cepa-nobody").is_err());
    }

    #[test]
    fn a_signal_never_goes_to_a_group() {
        assert!(terminate(0).is_err());
        assert!(kill(1).is_err());
        assert!(kill(u32::MAX).is_err());
    }
}
