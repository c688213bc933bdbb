//! Looking: the run's folder says what was begun and reported, the process table says what lives. Only both together make an end.

use super::result::{self, Progress};
use super::stop::{LAUNCHER_PATIENCE, groups_of};
use super::{LOOK_PAUSE, Maker, Run, Runs, first_of, watchdog};
use crate::api::agent::Driver;
use crate::api::names::Uid;
use crate::inside::limits::{self, Counters};
use crate::inside::output;
use crate::inside::wire::{ExitCause, ExitReport, FILE_CONTAINER, FILE_EXIT, FILE_LIMIT, FILE_SPEC, FILE_WAIT, Identity, LimitReport};
use crate::plan::observed::{EndCause, Limit, RunEnd, SandboxSeen, SandboxState};
use crate::sandbox::folder::{MadeContainer, Session, StoredSpec};
use crate::sandbox::kill::{self, Life};
use crate::sandbox::{SandboxError, logs};
use k8s_openapi::jiff::Timestamp;
use std::fs::{self, File};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Most of the output that an end keeps.
const TAIL_BYTES_MAX: usize = 8 * 1024;
/// Most new output that one look searches for progress: only the last line counts.
const PROGRESS_BYTES_MAX: usize = 64 * 1024;

/// Where the search for progress goes on.
#[derive(Default)]
pub(super) struct ProgressCursor {
    next: u64,
    last: Option<Progress>,
}

impl Runs {
    /// Looks at the runs of one agent, or at all. Of all, one that cannot be looked at is told as about to start: it is there, nothing is
    /// taken for gone, and the others are not hidden by it.
    pub(crate) fn observe(&self, uid: Option<&Uid>) -> Result<Vec<SandboxSeen>, SandboxError> {
        if let Some(uid) = uid {
            let wanted: Vec<Arc<Run>> =
                self.known().range(first_of(uid)..).map(|(_, run)| run.clone()).take_while(|run| run.id.uid == *uid).collect();
            let look = |run: &Arc<Run>| self.look(run).map_err(|e| SandboxError::CannotObserve(format!("{}: {e}", run.id)));
            return wanted.iter().map(look).collect();
        }
        let all: Vec<Arc<Run>> = self.known().values().cloned().collect();
        let unseen = |run: &Run| SandboxSeen {
            run: run.id.clone(),
            driver: run.driver,
            id: "unknown".to_owned(),
            isolation: Vec::new(),
            state: SandboxState::Preparing,
            doing: None,
        };
        Ok(all.iter().map(|run| self.look(run).unwrap_or_else(|_| unseen(run))).collect())
    }

    /// Looks at one run.
    pub(super) fn look(&self, run: &Run) -> io::Result<SandboxSeen> {
        let session = run.session()?;
        let identity = run.identity()?;
        let id = self.name_of(run, identity.as_ref())?;
        let isolation = session.as_ref().map(|session| session.isolation.clone()).unwrap_or_default();
        let state = match run.ended.get() {
            Some(end) => SandboxState::Ended(end.clone()),
            None if run.is_refused() => SandboxState::Preparing,
            None => self.state_of(run, session.as_ref())?,
        };
        if let SandboxState::Ended(end) = &state {
            // Two looks at once see the same end.
            let _ = run.ended.set(end.clone());
        }
        let doing = match state {
            SandboxState::Preparing => run.doing(),
            SandboxState::Running { .. } => self.maker(run.driver)?.doubt(run),
            SandboxState::Ended(_) => None,
        };
        Ok(SandboxSeen { run: run.id.clone(), driver: run.driver, id, isolation, state, doing })
    }

    /// The driver's id of a run, for people.
    fn name_of(&self, run: &Run, identity: Option<&Identity>) -> io::Result<String> {
        let container = match run.driver {
            Driver::Docker | Driver::Pod => run.folder.read::<MadeContainer>(FILE_CONTAINER)?,
            Driver::Auto | Driver::Process => None,
        };
        Ok(match (container, identity) {
            (Some(made), _) if run.driver == Driver::Pod => format!("pod {}", made.name),
            (Some(made), _) => format!("container {}", made.id.get(..12).unwrap_or(&made.id)),
            (None, Some(identity)) => format!("pid {}", identity.pid),
            (None, None) => "preparing".to_owned(),
        })
    }

    fn state_of(&self, run: &Run, session: Option<&Session>) -> io::Result<SandboxState> {
        let maker = self.maker(run.driver)?;
        if !fs::exists(run.folder.path().join(FILE_SPEC))? && run.identity()?.is_none() {
            // Not begun yet; or somebody took its folder away, and with it the lock: then its driver alone can tell that it has ended.
            let has_ended = run.folder.is_stopped()? && !maker.may_come(run)?;
            if !has_ended {
                return Ok(SandboxState::Preparing);
            }
        }
        // The lock first: when it is free, every file is as it will stay.
        let mut held = run.folder.is_held()?;
        let life = match run.identity()? {
            // Who holds the lock lives, whoever it is.
            None if held => match session {
                Some(session) => return self.running(run, session),
                None => return Ok(SandboxState::Preparing),
            },
            None if session.is_none() && maker.may_come(run)? => return Ok(SandboxState::Preparing),
            None => Life::Gone,
            Some(identity) => kill::look(&identity)?,
        };
        // The launcher counts and writes its word within milliseconds, and nothing tells of that instant.
        let until = Instant::now() + LAUNCHER_PATIENCE;
        while held && life == Life::Gone && Instant::now() < until {
            std::thread::sleep(LOOK_PAUSE);
            held = run.folder.is_held()?;
        }
        let report: Option<ExitReport> = run.folder.read(FILE_EXIT)?;
        match (life, session) {
            (Life::Alive, None) => Ok(SandboxState::Preparing),
            (Life::Alive, Some(session)) => self.running(run, session),
            // The launcher has not written its word yet, and init's own is not believed without it.
            (Life::Gone, None) if held => Ok(SandboxState::Preparing),
            (Life::Gone, Some(session)) if held => self.running(run, session),
            (Life::Gone | Life::Rebooted, _) => {
                let end = self.end_of(run, maker, report, life == Life::Rebooted)?;
                // What the kernel never showed is only said to be gone: a start that comes late must not be granted after that.
                let is_final = match &end.cause {
                    EndCause::NotStarted(why) if run.identity()?.is_none() => self.link.bury(&run.id, &run.folder, why)?,
                    _ => true,
                };
                Ok(if is_final { SandboxState::Ended(end) } else { SandboxState::Preparing })
            }
        }
    }

    fn running(&self, run: &Run, session: &Session) -> io::Result<SandboxState> {
        let since = Timestamp::from_millisecond(session.granted_at_millis).unwrap_or(Timestamp::UNIX_EPOCH);
        let file = File::open(self.log_of(&run.id))?;
        let changed_at = file.metadata()?.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
        let mut cursor = run.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let end = output::counters(&file)?.end;
        let from = cursor.next.max(end.saturating_sub(PROGRESS_BYTES_MAX as u64));
        let (from, bytes) = output::read(&file, from, PROGRESS_BYTES_MAX)?;
        cursor.last = result::last_progress(&bytes).or_else(|| cursor.last.take());
        // An incomplete last line is read again.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        cursor.next = from + whole as u64;
        let last_sign_at = changed_at.map_or(since, |at| at.max(since));
        Ok(SandboxState::Running { since, last_sign_at, progress: cursor.last.clone() })
    }

    fn end_of(&self, run: &Run, maker: &dyn Maker, report: Option<ExitReport>, rebooted: bool) -> io::Result<RunEnd> {
        let tombstone = run.folder.tombstone()?;
        let stopped = tombstone.as_ref().is_some_and(String::is_empty);
        let session = run.session()?;
        let wait = maker.last_word(run, report.as_ref())?;
        let own_counters = report.as_ref().and_then(|report| report.counters);
        let wait_counters = wait.as_ref().map(|wait| Counters { oom_kills: wait.oom_kills, pids_refused: wait.pids_refused });
        let duration_millis = match (&report, &session) {
            (Some(report), _) => report.duration_millis,
            (None, Some(session)) => duration_until_wait(run, session),
            (None, None) => 0,
        };
        let status = wait.as_ref().and_then(|wait| wait.status);
        let failed = wait.and_then(|wait| wait.failed);
        // A launcher that was killed has no word; init itself is then all there is.
        let contradicted = status.is_some_and(|status| !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0);
        let cause = match report.map(|report| report.cause) {
            Some(_) if contradicted && stopped => EndCause::Stopped,
            Some(_) if contradicted => EndCause::Lost(format!("init left a report, but did not end well: {}", words_of(status))),
            Some(ExitCause::NotStarted(_)) | None if stopped => EndCause::Stopped,
            // It ran to its end, and what it made did not arrive.
            Some(_) if session.is_some() && failed.is_some() => EndCause::Lost(failed.unwrap_or_default()),
            Some(cause) => end_cause(cause),
            None if rebooted => EndCause::Lost("host rebooted".to_owned()),
            None if session.is_none() => EndCause::NotStarted(
                tombstone
                    .filter(|why| !why.is_empty())
                    .or(failed)
                    .unwrap_or_else(|| "the launcher ended before the sandbox was ready".to_owned()),
            ),
            None => EndCause::Lost(failed.unwrap_or_else(|| words_of(status))),
        };
        let cause = match exceeded(run, &cause, own_counters.or(wait_counters))? {
            Some((limit, message)) => EndCause::LimitExceeded { limit, message },
            None => cause,
        };
        let output_tail = logs::tail(self.state(), &run.id, TAIL_BYTES_MAX).unwrap_or_default();
        Ok(RunEnd { cause, duration_millis, output_tail, result: result::read(&run.folder) })
    }
}

/// How init ended, without a report that could be believed.
fn words_of(status: Option<i32>) -> String {
    match status {
        Some(status) if libc::WIFSIGNALED(status) => format!("init was ended by signal {}", libc::WTERMSIG(status)),
        Some(status) if libc::WEXITSTATUS(status) != 0 => format!("init ended with code {}", libc::WEXITSTATUS(status)),
        _ => "init ended without a report".to_owned(),
    }
}

/// Whether a limit is why a run ended: what the watchdog wrote, else what the kernel counted. A command that succeeded in spite of a refusal
/// has succeeded, and one that we ended was ended by us.
fn exceeded(run: &Run, cause: &EndCause, counters: Option<Counters>) -> io::Result<Option<(Limit, String)>> {
    if let Some(report) = run.folder.read::<LimitReport>(FILE_LIMIT)?
        && let Some(limit) = Limit::ALL.into_iter().find(|limit| limit.as_str() == report.limit)
    {
        return Ok(Some((limit, report.message)));
    }
    let by_itself = matches!(cause, EndCause::Exited(code) if *code != 0) || matches!(cause, EndCause::Signaled(_) | EndCause::Lost(_));
    let Some(spec) = run.folder.read::<StoredSpec>(FILE_SPEC)?.filter(|_| by_itself) else { return Ok(None) };
    // A launcher that was killed has left the groups as they were.
    let counters = match counters {
        Some(counters) => counters,
        None => limits::count(&groups_of(run)?),
    };
    Ok(if counters.oom_kills > 0 {
        let how_often = counters.oom_kills;
        Some((Limit::Memory, format!("the kernel ended {how_often} of its processes when all of it was used")))
    } else if counters.pids_refused > 0 {
        Some((Limit::Pids, watchdog::pids_message(spec.watch.pids_max, counters.pids_refused)))
    } else if *cause == EndCause::Signaled(libc::SIGXFSZ) {
        Some((Limit::Disk, format!("it wrote a file of more than {} bytes", spec.watch.disk_bytes_max)))
    } else {
        None
    })
}

/// From the grant to the launcher's last word, by the wall clock: init itself could not tell.
fn duration_until_wait(run: &Run, session: &Session) -> u64 {
    let ended = fs::metadata(run.folder.path().join(FILE_WAIT)).and_then(|found| found.modified()).ok();
    let ended = ended.and_then(|time| Timestamp::try_from(time).ok()).map_or(0, Timestamp::as_millisecond);
    u64::try_from(ended - session.granted_at_millis).unwrap_or(0)
}

fn end_cause(cause: ExitCause) -> EndCause {
    match cause {
        ExitCause::Exited(code) => EndCause::Exited(code),
        ExitCause::Signaled(signal) => EndCause::Signaled(signal),
        ExitCause::TimedOut => EndCause::TimedOut,
        ExitCause::LeaseExpired => EndCause::LeaseExpired,
        ExitCause::Stopped => EndCause::Stopped,
        ExitCause::NotStarted(text) => EndCause::NotStarted(text),
        ExitCause::CannotExecute(text) => EndCause::CannotExecute(text),
    }
}
