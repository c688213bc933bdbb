//! The ONE place that runs the `git` program: look at a remote, fetch from it, push to it. Nothing else needs it.
//!
//! The program works in our own repositories only: explicit `--git-dir`, an empty environment, no system or user configuration, no
//! hooks of ours, one allowed protocol, the literal address, no tags, no submodules, no prompts. Everything it prints is capped, and
//! its whole process group is killed at its deadline. The remote's own hooks and configuration do count: that is the remote's right.
//!
//! A local remote may belong to another user than a controller that is root. Its side of git then runs as that user (`owner.rs`): its
//! hooks get no more rights than their owner has, and no file of root's stays behind in it. Where that user could not reach it, our own
//! user serves it; git refuses that unless `safe.directory` allows it, and heeds that only in a file. So there is one file of ours with
//! just that line; the operator's `--local-repos` is what really decides.
//!
//! Over the network the operator's configuration says how a remote is reached (`access.rs`); what `git` then says of it becomes an error
//! with a reason, in which no credential appears even if the remote repeats it.

use super::access::Access;
use super::address::Remote;
use super::error::{RemoteCause, WorkspaceError, io};
use super::{owner, process};
use crate::api::names::{Branch, CommitId, Secret};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Most bytes taken of what `git` prints: about 100,000 refs.
const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// Most bytes of its words that go into a message.
const WORDS_BYTES_MAX: usize = 4096;
/// Oldest `git` that knows every option used here (`GIT_CONFIG_GLOBAL`).
const VERSION_MIN: (u32, u32) = (2, 32);
/// Longest time for `git --version`.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A remote that cannot store refuses in these words, and so does one that does not want to,
const STORE_REFUSED: &[&str] = &["(unpacker error)", "(failed to update ref)", "(unable to migrate objects", "(atomic transaction failed)"];
/// but only one whose disk or locks fail says this besides: then nobody's change is at fault.
const STORE_BROKEN: &[&str] =
    &["unable to create", "no space left", "read-only file system", "permission denied", "input/output error", "disk quota exceeded"];

/// What git calls an error in old histories, but is harmless and found in well-known repositories; and what it calls one in files of
/// submodules and attributes, which nothing here ever acts upon. Were those an error, one branch on the remote could stop every fetch.
const FSCK_TOLERATED: &[&str] = &[
    "zeroPaddedFilemode",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "missingNameBeforeEmail",
    "badTimezone",
    "missingEmail",
    "gitmodulesBlob",
    "gitmodulesLarge",
    "gitmodulesMissing",
    "gitmodulesName",
    "gitmodulesParse",
    "gitmodulesPath",
    "gitmodulesSymlink",
    "gitmodulesUpdate",
    "gitmodulesUrl",
    "gitattributesBlob",
    "gitattributesLarge",
    "gitattributesLineLength",
    "gitattributesMissing",
];

/// The `git` program and how it is run.
#[derive(Debug)]
pub(super) struct Git {
    program: PathBuf,
    path: OsString,
    setpriv: Option<PathBuf>,
    configuration: PathBuf,
    timeout: Duration,
    askpass: PathBuf,
    silence: Duration,
}

/// What a remote has.
#[derive(Debug, Clone, Default)]
pub(super) struct RemoteRefs {
    /// The branch that HEAD names, if it exists.
    pub(super) default: Option<Branch>,
    /// Branches that were asked for.
    pub(super) branches: BTreeMap<Branch, CommitId>,
}

/// How a push ended, as `git` tells it; what counts is the look afterwards.
#[derive(Debug, Clone)]
pub(super) struct PushReply {
    /// The remote itself said no (hook, protected or checked-out branch).
    pub(super) refused: bool,
    /// Its words.
    pub(super) words: String,
}

struct Finished {
    succeeded: bool,
    stdout: String,
    stderr: String,
}

impl Git {
    /// Finds the program and checks its version.
    pub(super) fn find(folder: &Path, timeout: Duration) -> Result<Self, WorkspaceError> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let find = |name: &str| std::env::split_paths(&path).map(|part| part.join(name)).find(|file| file.is_file());
        let setpriv = find("setpriv");
        let program = find("git").ok_or_else(|| {
            WorkspaceError::Unusable("the `git` program was not found: install git 2.32 or newer (Debian: apt install git)".to_owned())
        })?;
        let configuration = folder.join("git.config");
        std::fs::write(&configuration, "[safe]\n\tdirectory = *\n").map_err(io("write", &configuration))?;
        let git = Self { program, path, setpriv, configuration, timeout, askpass: PathBuf::from("/bin/false"), silence: timeout };
        let remote = Remote { url: String::new(), protocol: "file", given: "git --version".to_owned(), access: Access::default() };
        let told = git.run("ask", &remote, None, &["--version".into()], VERSION_TIMEOUT)?;
        if version(&told.stdout).is_none_or(|version| version < VERSION_MIN) {
            let text = format!("{} is {:?}: install git 2.32 or newer", git.program.display(), told.stdout.trim());
            return Err(WorkspaceError::Unusable(text));
        }
        Ok(git)
    }

    /// With the program that answers for a credential, and how long a remote over the network may be silent.
    pub(super) fn with_network(self, askpass: &Path, silence: Duration) -> Self {
        Self { askpass: askpass.to_owned(), silence, ..self }
    }

    /// How long a look may take: twice the silence over the network, where nothing but our deadline ends a server that accepts and then
    /// never speaks. It answers within a few packets.
    fn look_timeout(&self, remote: &Remote) -> Duration {
        if remote.protocol == "file" { self.timeout } else { self.timeout.min(self.silence * 2) }
    }

    /// Looks at the remote: its default branch, and those of `branches` that exist (`None`: all).
    pub(super) fn look(&self, remote: &Remote, branches: Option<&[&Branch]>) -> Result<RemoteRefs, WorkspaceError> {
        self.look_within(remote, branches, self.timeout)
    }

    /// As `look`, with a time limit of its own.
    pub(super) fn look_within(&self, remote: &Remote, branches: Option<&[&Branch]>, limit: Duration) -> Result<RemoteRefs, WorkspaceError> {
        let mut arguments: Vec<OsString> = vec!["ls-remote".into(), "--symref".into()];
        arguments.extend(self.serve_as_owner(remote, "--upload-pack", "git-upload-pack"));
        arguments.push("--end-of-options".into());
        arguments.push(remote.url.clone().into());
        arguments.push("HEAD".into());
        match branches {
            Some(branches) => arguments.extend(branches.iter().map(|branch| branch.full_ref().into())),
            None => arguments.push("refs/heads/*".into()),
        }
        let told = self.run("look at", remote, None, &arguments, limit.min(self.look_timeout(remote)))?;
        if !told.succeeded {
            return Err(self.failed("look at", remote, &told));
        }
        read_refs(remote, &told.stdout)
    }

    /// Fetches all branches into `refs/remotes/origin/` of the base repository. A remote that is a shallow clone makes that one shallow too.
    pub(super) fn fetch(&self, base: &Path, remote: &Remote) -> Result<(), WorkspaceError> {
        let mut arguments: Vec<OsString> = Vec::new();
        for tolerated in FSCK_TOLERATED {
            arguments.extend(["-c".into(), format!("fetch.fsck.{tolerated}=warn").into()]);
        }
        let options = [
            "fetch",
            "--quiet",
            "--update-shallow",
            "--no-tags",
            "--prune",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
        ];
        arguments.extend(options.into_iter().map(OsString::from));
        arguments.extend(self.serve_as_owner(remote, "--upload-pack", "git-upload-pack"));
        arguments.extend(["--end-of-options".into(), remote.url.clone().into(), "+refs/heads/*:refs/remotes/origin/*".into()]);
        let told = self.run("fetch from", remote, Some(base), &arguments, self.timeout)?;
        if told.succeeded { Ok(()) } else { Err(self.failed("fetch from", remote, &told)) }
    }

    /// Pushes one commit to one ref, if that still has its old value.
    pub(super) fn push(
        &self,
        work: &Path,
        remote: &Remote,
        head: &CommitId,
        target: &Branch,
        expected_old: Option<&CommitId>,
    ) -> Result<PushReply, WorkspaceError> {
        let name = target.full_ref();
        let lease = format!("--force-with-lease={name}:{}", expected_old.map_or("", CommitId::as_str));
        let options = ["push", "--porcelain", "--atomic", "--no-verify", "--no-follow-tags", "--no-signed", "--recurse-submodules=no"];
        let mut arguments: Vec<OsString> = options.into_iter().map(OsString::from).collect();
        arguments.extend(self.serve_as_owner(remote, "--receive-pack", "git-receive-pack"));
        arguments.extend([lease.into(), "--end-of-options".into(), remote.url.clone().into(), format!("{head}:{name}").into()]);
        let told = self.run("push to", remote, Some(work), &arguments, self.timeout)?;
        let rejected: Vec<&str> = told.stdout.lines().filter(|line| line.starts_with('!') && line.contains("[remote rejected]")).collect();
        let loud = told.stderr.to_lowercase();
        let broken = rejected.iter().any(|line| STORE_REFUSED.iter().any(|words| line.contains(words)))
            && STORE_BROKEN.iter().any(|words| loud.contains(words));
        let refused = !rejected.is_empty() && !broken;
        if !told.succeeded && !refused && remote.protocol != "file" {
            return Err(self.failed("push to", remote, &told));
        }
        let status = told.stdout.lines().filter(|line| line.starts_with('!')).filter_map(|line| line.split('\t').nth(2));
        let said = told.stderr.lines().filter_map(|line| line.strip_prefix("remote: ")).map(str::trim_end);
        let mut words: Vec<&str> = if refused { said.chain(status).collect() } else { told.stderr.lines().collect() };
        words.retain(|line| !line.is_empty());
        Ok(PushReply { refused, words: capped(&words.join("\n")) })
    }

    /// The option that makes a local remote's side run as the user that the repository belongs to.
    fn serve_as_owner(&self, remote: &Remote, option: &str, program: &str) -> Option<OsString> {
        let setpriv = self.setpriv.as_ref().filter(|_| remote.protocol == "file")?.to_str()?;
        let (uid, gid) = owner::other_owner(Path::new(&remote.url))?;
        // For a shell, so nothing that is not ours goes in; the path of the repository is quoted by git itself.
        let plain = setpriv.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        plain.then(|| {
            let command = format!("env GIT_CONFIG_GLOBAL=/dev/null {setpriv} --reuid={uid} --regid={gid} --clear-groups {program}");
            format!("{option}={command}").into()
        })
    }

    /// The command, and what must appear in no message.
    fn command(&self, remote: &Remote, git_dir: Option<&Path>, arguments: &[OsString]) -> Result<(Command, Vec<Secret>), WorkspaceError> {
        let mut command = Command::new(&self.program);
        command.env_clear().current_dir("/");
        command.env("PATH", &self.path).env("HOME", "/nonexistent").env("XDG_CONFIG_HOME", "/nonexistent").env("LC_ALL", "C");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", &self.configuration).env("GIT_ATTR_NOSYSTEM", "1");
        command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "/bin/false").env("SSH_ASKPASS", "/bin/false");
        command.env("GIT_PROTOCOL_FROM_USER", "0").env("GIT_NO_REPLACE_OBJECTS", "1").env("GIT_OPTIONAL_LOCKS", "0");
        command.env("GIT_CEILING_DIRECTORIES", "/").env("GIT_SSH_COMMAND", "/bin/false");
        let settings = [
            "protocol.allow=never",
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.askPass=/bin/false",
            "gc.auto=0",
            "maintenance.auto=0",
            "credential.helper=",
            "transfer.fsckObjects=true",
            "fetch.fsckObjects=true",
            "push.followTags=false",
            "submodule.recurse=false",
            "http.followRedirects=false",
            "core.pager=cat",
        ];
        command.arg("--no-pager");
        if let Some(git_dir) = git_dir {
            let mut option = OsString::from("--git-dir=");
            option.push(git_dir);
            command.arg(option);
        }
        for setting in settings {
            command.args(["-c", setting]);
        }
        for setting in remote.access.settings(remote, self.silence) {
            command.args(["-c", &setting]);
        }
        command.arg("-c").arg(format!("protocol.{}.allow=always", remote.protocol));
        command.args(arguments);
        let secrets = remote.access.equip(&mut command, remote, &self.askpass, self.silence)?;
        Ok((command, secrets))
    }

    fn run(
        &self,
        what: &'static str,
        remote: &Remote,
        git_dir: Option<&Path>,
        arguments: &[OsString],
        limit: Duration,
    ) -> Result<Finished, WorkspaceError> {
        let (command, secrets) = self.command(remote, git_dir, arguments)?;
        let ended = process::run(command, OUTPUT_BYTES_MAX, Instant::now() + limit).map_err(io("run", &self.program))?;
        let Some(ended) = ended else {
            return Err(WorkspaceError::RemoteTimeout { what, repository: remote.given.clone(), limit });
        };
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            secrets.iter().fold(text, |text, secret| text.replace(secret.expose(), "(credential)"))
        };
        Ok(Finished { succeeded: ended.status.success(), stdout: text(ended.stdout), stderr: text(ended.stderr) })
    }

    fn failed(&self, what: &'static str, remote: &Remote, told: &Finished) -> WorkspaceError {
        let lines: Vec<_> = told.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let (repository, words) = (remote.given.clone(), capped(&lines.join("; ")));
        if remote.protocol == "file" {
            return WorkspaceError::Remote { what, repository, words };
        }
        // What the remote itself says is only quoted: it must not choose the reason.
        let own = lines.iter().filter(|line| !line.starts_with("remote:"));
        match own.filter_map(|line| cause(line)).next() {
            Some(Cause::Refused(cause)) => {
                WorkspaceError::RemoteRefused { what, repository, cause, words, note: remote.access.note.clone() }
            }
            Some(Cause::Silent) => WorkspaceError::RemoteSilent { what, repository, limit: self.silence },
            Some(Cause::Absent) => WorkspaceError::NotFound { repository, why: format!("{words}; {}", remote.access.note) },
            None => WorkspaceError::Remote { what, repository, words },
        }
    }
}

/// What a line of `git`'s, curl's or ssh's says of a remote over the network.
enum Cause {
    Refused(RemoteCause),
    Silent,
    Absent,
}

fn cause(line: &str) -> Option<Cause> {
    let table: [(&[&str], Cause); 5] = [
        (
            &[
                "certificate verification failed",
                "server verification failed",
                "SSL certificate problem",
                "SSL: no alternative certificate",
                "SSL: certificate subject name",
                "error reading ca cert",
                "error setting certificate",
                "Host key verification failed",
                "REMOTE HOST IDENTIFICATION HAS CHANGED",
                "host key is known for",
            ],
            Cause::Refused(RemoteCause::Trust),
        ),
        (&["returned error: 30"], Cause::Refused(RemoteCause::Redirect)),
        (
            &[
                "Authentication failed",
                "could not read Username",
                "could not read Password",
                "returned error: 401",
                "returned error: 403",
                "Permission denied (",
            ],
            Cause::Refused(RemoteCause::Credential),
        ),
        (
            &["Operation too slow", "Operation timed out", "Connection timed out", "Timeout, server", "timed out during banner"],
            Cause::Silent,
        ),
        (&["returned error: 404", "not found", "does not appear to be a git repository"], Cause::Absent),
    ];
    table.into_iter().find(|(texts, _)| texts.iter().any(|text| line.contains(text))).map(|(_, cause)| cause)
}

/// What `git ls-remote` and `git log --oneline` print of one branch of a repository on this machine: proof in git's own words, for people.
/// # Errors
/// `git` is missing, or refuses.
pub fn report(folder: &Path, repository: &Path, branch: &Branch) -> Result<[String; 2], WorkspaceError> {
    let git = Git::find(folder, VERSION_TIMEOUT)?;
    let shown = repository.display().to_string();
    let remote = Remote { url: shown.clone(), protocol: "file", given: shown.clone(), access: Access::default() };
    let ask = |git_dir: Option<&Path>, arguments: &[&str]| {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let told = git.run("look at", &remote, git_dir, &arguments, VERSION_TIMEOUT)?;
        if told.succeeded { Ok(told.stdout.trim_end().to_owned()) } else { Err(git.failed("look at", &remote, &told)) }
    };
    Ok([
        ask(None, &["ls-remote", "--end-of-options", &shown, &branch.full_ref()])?,
        ask(Some(repository), &["log", "--oneline", "--no-color", "-n", "20", &branch.full_ref(), "--"])?,
    ])
}

/// `git version 2.39.5 (…)` -> (2, 39).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix("git version ")?.split(['.', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn read_refs(remote: &Remote, text: &str) -> Result<RemoteRefs, WorkspaceError> {
    let failed = |words: String| WorkspaceError::Remote { what: "look at", repository: remote.given.clone(), words };
    if text.len() >= OUTPUT_BYTES_MAX {
        return Err(failed(format!("it lists more than {OUTPUT_BYTES_MAX} bytes of refs")));
    }
    let mut refs = RemoteRefs::default();
    let mut head = None;
    for line in text.lines() {
        let (value, name) = line.split_once('\t').ok_or_else(|| failed(format!("unexpected line {line:?}")))?;
        if let Some(target) = value.strip_prefix("ref: refs/heads/") {
            if name == "HEAD" {
                head = Branch::new(target).ok();
            }
        } else if let Some(name) = name.strip_prefix("refs/heads/") {
            if value.len() == 64 {
                return Err(WorkspaceError::BadAddress {
                    repository: remote.given.clone(),
                    why: "it names its objects by SHA-256, which is not supported; use a repository with SHA-1 names".to_owned(),
                });
            }
            // A branch whose name we would never accept is nobody's base or target.
            if let (Ok(branch), Ok(commit)) = (Branch::new(name), CommitId::new(value)) {
                refs.branches.insert(branch, commit);
            }
        } else if name == "HEAD" && head.is_some() {
            refs.default = head.take();
        }
    }
    Ok(refs)
}

/// Without control characters except line ends, at most `WORDS_BYTES_MAX`.
fn capped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| *c == '\n' || !c.is_control()) {
        if out.len() + c.len_utf8() > WORDS_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}
