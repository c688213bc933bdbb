//! The link of pods over TLS, as the init of one sees it.

use mosaic::api::names::{Attempt, Epoch, Role, RunId, Secret, Uid};
use mosaic::inside::dial::{About, Dialer, Line, to_hex};
use mosaic::inside::wire::{ENV_AUTHORITY, ENV_LINK, ENV_RUN, ENV_TOKEN, PATH_BEGIN, PATH_FETCH, PATH_GRANT};
use mosaic::sandbox::SandboxIds;
use mosaic::sandbox::folder::RunFolder;
use mosaic::sandbox::link::remote::Authority;
use mosaic::sandbox::link::{LinkServer, Origin, Standing};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

struct Link {
    server: LinkServer,
    authority: Authority,
    address: SocketAddr,
}

impl Link {
    fn open(state: &Path) -> Self {
        let server = LinkServer::start(Arc::default(), Standing::Leads).unwrap();
        let authority = Authority::open(state).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        server.listen(listener, &authority);
        Self { server, authority, address }
    }

    /// The line of a pod that was given this name and token.
    fn line(&self, name: &str, token: &str) -> Line {
        let given = |variable: &str| match variable {
            ENV_LINK => Some(self.address.to_string()),
            ENV_AUTHORITY => Some(to_hex(self.authority.certificate())),
            ENV_RUN => Some(name.to_owned()),
            ENV_TOKEN => Some(token.to_owned()),
            _ => None,
        };
        Line::new(Arc::new(Dialer::new(given).unwrap()))
    }
}

fn ask(line: &mut Line, path: &str) -> u16 {
    line.ask_once(path, About::default(), b"", PATIENCE).unwrap().0
}

#[test]
fn a_pod_that_waits_is_told_to_ask_again_until_a_run_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let link = Link::open(folder.path());
    let mut line = link.line("made-ahead", "its token");
    assert_eq!(ask(&mut line, PATH_BEGIN), 403, "nobody knows it");
    link.server.wait("made-ahead", Secret::new("its token"));
    assert_eq!(link.server.asked_at("made-ahead"), None);
    assert_eq!(ask(&mut line, PATH_BEGIN), 202);
    assert!(link.server.asked_at("made-ahead").is_some());
    for path in [PATH_FETCH, PATH_GRANT] {
        assert_eq!(ask(&mut line, path), 403, "{path}: there is nothing for it");
    }
    assert_eq!(ask(&mut link.line("made-ahead", "another token"), PATH_BEGIN), 403);
    assert_eq!(ask(&mut link.line("another", "its token"), PATH_BEGIN), 403);

    // A run takes it: the question that is held is answered at once, and the next is the run's, whose files are not there yet.
    let run = RunId { uid: Uid::new("a-run-that-claims").unwrap(), attempt: Attempt(1), role: Role::Agent };
    let of_run = RunFolder::of(folder.path(), &run);
    let ids = SandboxIds::of(61_357);
    of_run.make(ids.uid, ids.gid).unwrap();
    let asked_at = Instant::now();
    let first = std::thread::scope(|scope| {
        let held = scope.spawn(|| ask(&mut line, PATH_BEGIN));
        std::thread::sleep(Duration::from_millis(200));
        let origin = Origin::Remote("made-ahead".to_owned(), Secret::new("its token"));
        link.server.serve(&run, Epoch(1), 30_000, &of_run, origin).unwrap();
        held.join().unwrap()
    });
    assert_eq!(first, 202);
    assert!(asked_at.elapsed() < Duration::from_secs(1), "{:?}", asked_at.elapsed());
    assert_eq!(ask(&mut line, PATH_BEGIN), 503);
    assert_eq!(link.server.asked_at("made-ahead"), None, "it waits no more");
}

#[test]
fn whoever_asks_while_a_run_takes_it_is_never_refused() {
    let folder = tempfile::tempdir().unwrap();
    let link = Link::open(folder.path());
    let ids = SandboxIds::of(61_357);
    for round in 0..40 {
        let name = format!("made-ahead-{round}");
        link.server.wait(&name, Secret::new("its token"));
        let run = RunId { uid: Uid::new(format!("claims-{round}")).unwrap(), attempt: Attempt(1), role: Role::Agent };
        let of_run = RunFolder::of(folder.path(), &run);
        of_run.make(ids.uid, ids.gid).unwrap();
        let answers = std::thread::scope(|scope| {
            let mut line = link.line(&name, "its token");
            let asking = scope.spawn(move || [(); 4].map(|()| ask(&mut line, PATH_BEGIN)));
            std::thread::sleep(Duration::from_micros(round * 50));
            let origin = Origin::Remote(name.clone(), Secret::new("its token"));
            link.server.serve(&run, Epoch(1), 30_000, &of_run, origin).unwrap();
            asking.join().unwrap()
        });
        assert!(answers.iter().all(|status| matches!(status, 202 | 503)) && answers.contains(&503), "{round}: {answers:?}");
        link.server.forget(&run);
    }
}

#[test]
fn a_pod_that_is_not_wanted_any_more_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let link = Link::open(folder.path());
    link.server.wait("made-ahead", Secret::new("its token"));
    let mut line = link.line("made-ahead", "its token");
    let first = std::thread::scope(|scope| {
        let held = scope.spawn(|| ask(&mut line, PATH_BEGIN));
        std::thread::sleep(Duration::from_millis(200));
        link.server.wait_no_more("made-ahead");
        held.join().unwrap()
    });
    assert_eq!((first, ask(&mut line, PATH_BEGIN)), (202, 403));
}
