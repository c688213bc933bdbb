//! The link of pods: one TCP port with TLS for all of them, on the link's own thread. Each request carries the name of its run and the token
//! that its pod alone was given; once it has its grant also the session secret. Beside grant and renewal, which are those of every driver,
//! it gives the files in pieces and takes output, files and the last word; all of it hostile, whoever sends it.
//!
//! A pod that was made ahead has no run yet: it asks how to begin, and is told to ask again until one has claimed it.
//!
//! What is taken is laid out in the run's own tree and HOME, whole archives only and each once, so that everything after the end of a run
//! (snapshot, gates, rescue) is the same for every driver. Behind the end that was seen nothing is taken any more.

use super::{Answer, LinkServer, RunLink, Shared, control, is_same, json, plain};
use crate::api::names::{Role, RunId, Secret};
use crate::inside::archive::{self, Bounds, Root};
use crate::inside::dial::to_hex;
use crate::inside::output::Ring;
use crate::inside::wire::{
    Beginning, ExitCause, ExitNotice, FILE_EXIT, FILE_SESSION, FILE_SPEC, FILE_TASK, FOLDER_OUT, HEADER_NUMBER, HEADER_OFFSET, HEADER_RUN,
    HEADER_SECRET, LINK_NAME, PATH_BEGIN, PATH_EXIT, PATH_FETCH, PATH_OUTPUT, PATH_TAKE, PATH_TREE, PIECE_BYTES_MAX, Parcel, Take,
};
use crate::sandbox::folder::{RunFolder, Session, StoredSpec};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Connections at once from one address: a pod's init needs three, and several pods may share one.
const CONNECTIONS_MAX: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may be idle, or a head take to arrive.
const IDLE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the question of a pod that waits for its run is held: shorter than its patience for an answer.
const WAIT_HOLD: Duration = Duration::from_secs(2);
/// What an entry of an archive has beside its content, at most.
const ENTRY_BYTES_MAX: u64 = 4200;
/// Files that a pod begins with, as an archive and what it is.
pub(crate) const FILE_FILES: &str = "files.archive";
/// See [`FILE_FILES`].
pub(crate) const FILE_PARCEL: &str = "files.json";
/// Number of the last archive that was taken.
const FILE_TAKEN: &str = "taken.json";
/// Pieces that have come of the next one.
const FILE_COMING: &str = "coming.archive";
/// Why the files of a run could not be taken back, as JSON text.
pub(crate) const FILE_UNTAKEN: &str = "untaken.json";

/// What is kept of the link of one pod.
pub(super) struct Remote {
    /// Name of the run's folder.
    name: String,
    token: Secret,
    log: Mutex<Option<Ring>>,
    /// Held while files are taken.
    taking: Mutex<Coming>,
}

/// What has come of an archive.
#[derive(Default)]
struct Coming {
    number: u64,
    bytes: u64,
    /// The run was seen to end: whatever still comes is not taken.
    closed: bool,
}

impl Remote {
    pub(super) fn new(name: String, token: Secret) -> Self {
        Self { name, token, log: Mutex::default(), taking: Mutex::default() }
    }

    /// What its pod says that it is.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// A pod that waits for its run.
pub(super) struct Waiting {
    token: Secret,
    asked_at: Mutex<Option<Instant>>,
    /// It waits no longer.
    is_over: watch::Sender<bool>,
}

impl Waiting {
    /// Holds a question until there is a run, or for a while.
    async fn hold(&self) -> Answer {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let mut is_over = self.is_over.subscribe();
        let _ = tokio::time::timeout(WAIT_HOLD, is_over.wait_for(|is_over| *is_over)).await;
        plain(StatusCode::ACCEPTED)
    }
}

/// Who signs the certificates of this state folder's link.
pub struct Authority {
    certificate: Vec<u8>,
    config: Arc<ServerConfig>,
}

impl Authority {
    /// Reads it, or makes it once; the certificate of this start is signed anew.
    /// # Errors
    /// The state folder cannot be used.
    pub fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("link");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let odd = |e: rcgen::Error| io::Error::other(format!("the link's authority: {e}"));
        let path = folder.join("authority.key");
        if !path.exists() {
            crate::durable::make_once(&path, KeyPair::generate().map_err(odd)?.serialize_pem().as_bytes())?;
        }
        let key = KeyPair::from_pem(&fs::read_to_string(&path)?).map_err(odd)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Mosaic link");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let path = folder.join("authority.der");
        if !path.exists() {
            crate::durable::make_once(&path, params.self_signed(&key).map_err(odd)?.der())?;
        }
        let certificate = fs::read(&path)?;
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().map_err(odd)?;
        let leaf = CertificateParams::new(vec![LINK_NAME.to_owned()]).and_then(|params| params.signed_by(&own, &issuer)).map_err(odd)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key))
            .map_err(io::Error::other)?;
        Ok(Self { certificate: CertificateDer::from(certificate).to_vec(), config: Arc::new(config) })
    }

    /// Its certificate, for the pods.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

impl LinkServer {
    /// Serves pods from now on. Whoever is not known is refused for ever, so every run must be known before.
    pub fn listen(&self, listener: std::net::TcpListener, authority: &Authority) {
        self.runtime.spawn(accept(self.shared.clone(), listener, TlsAcceptor::from(authority.config.clone())));
    }

    /// Lets a pod wait that says this name and token, until a run is served under that name.
    pub fn wait(&self, name: &str, token: Secret) {
        let waiting = Waiting { token, asked_at: Mutex::default(), is_over: watch::Sender::new(false) };
        self.shared.waiting().insert(name.to_owned(), Arc::new(waiting));
    }

    /// When a pod that waits has asked last; `None`: not yet, or it waits no more.
    #[must_use]
    pub fn asked_at(&self, name: &str) -> Option<Instant> {
        let waiting = self.shared.waiting().get(name)?.clone();
        *waiting.asked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It waits no more: its next question is refused, unless there is a run of its name.
    pub fn wait_no_more(&self, name: &str) {
        if let Some(waiting) = self.shared.waiting().remove(name) {
            waiting.is_over.send_replace(true);
        }
    }

    /// The end of a pod was seen: what is being taken of it is waited for, and nothing more is taken.
    pub fn close(&self, run: &RunId) {
        let link = self.shared.runs().get(run).cloned();
        if let Some(super::Line::Remote(remote)) = link.as_ref().map(|link| &link.line) {
            remote.taking.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: std::net::TcpListener, acceptor: TlsAcceptor) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let open: Arc<Mutex<BTreeMap<IpAddr, usize>>> = Arc::default();
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(place) = Place::take(&open, from.ip()) else { continue };
        let (shared, acceptor) = (shared.clone(), acceptor.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await else { return };
            let service = service_fn(|request| answer(shared.clone(), request));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(IDLE_PATIENCE);
            // A broken connection is the client's matter: it asks again.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// One of the connections of an address.
struct Place(Arc<Mutex<BTreeMap<IpAddr, usize>>>, IpAddr);

impl Place {
    fn take(open: &Arc<Mutex<BTreeMap<IpAddr, usize>>>, from: IpAddr) -> Option<Self> {
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(from).or_default();
        (*count < CONNECTIONS_MAX).then(|| {
            *count += 1;
            Self(open.clone(), from)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// What the headers say.
struct About {
    secret: String,
    number: u64,
    offset: u64,
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let token = header("authorization");
    let token = token.strip_prefix("Bearer ").unwrap_or_default();
    let name = header(HEADER_RUN);
    let mut found = find(&shared, &name, token);
    if found.is_none() && request.uri().path() == PATH_BEGIN {
        let waiting = shared.waiting().get(&name).filter(|waiting| is_same(waiting.token.expose(), token)).cloned();
        if let Some(waiting) = waiting {
            return Ok(waiting.hold().await);
        }
        // A run is known before its pod waits no more: one that has just been claimed is found now.
        found = find(&shared, &name, token);
    }
    let Some(link) = found else { return Ok(plain(StatusCode::FORBIDDEN)) };
    let number = |name: &str| header(name).parse().unwrap_or(0);
    let about = About { secret: header(HEADER_SECRET), number: number(HEADER_NUMBER), offset: number(HEADER_OFFSET) };
    let path = request.uri().path().to_owned();
    let body = tokio::time::timeout(BODY_PATIENCE, Limited::new(request.into_body(), PIECE_BYTES_MAX).collect()).await;
    let Ok(Ok(body)) = body else { return Ok(plain(StatusCode::BAD_REQUEST)) };
    let body = body.to_bytes();
    Ok(match path.as_str() {
        PATH_BEGIN | PATH_FETCH | PATH_OUTPUT | PATH_TREE | PATH_TAKE | PATH_EXIT => {
            let run = link.run.clone();
            let done = tokio::task::spawn_blocking(move || link.serve_pod(&path, &about, &body)).await;
            match done {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    tracing::warn!(%run, error = crate::causes::one_line(&error), "a request of a pod came to nothing");
                    plain(StatusCode::INTERNAL_SERVER_ERROR)
                }
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
            }
        }
        path => control(shared, link, None, path, &body).await,
    })
}

fn find(shared: &Shared, name: &str, token: &str) -> Option<Arc<RunLink>> {
    let runs = shared.runs();
    let found = runs.values().find(|link| matches!(&link.line, super::Line::Remote(remote) if remote.name == name))?;
    let super::Line::Remote(remote) = &found.line else { return None };
    is_same(remote.token.expose(), token).then(|| found.clone())
}

fn said(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = plain(status);
    *answer.body_mut() = http_body_util::Full::new(text.into());
    answer
}

impl RunLink {
    fn serve_pod(&self, path: &str, about: &About, body: &[u8]) -> io::Result<Answer> {
        let super::Line::Remote(remote) = &self.line else { return Ok(plain(StatusCode::NOT_FOUND)) };
        if matches!(path, PATH_BEGIN | PATH_FETCH) {
            if self.folder.is_stopped()? || self.folder.read::<Session>(FILE_SESSION)?.is_some() {
                return Ok(plain(StatusCode::GONE));
            }
            return if path == PATH_BEGIN { self.beginning() } else { self.piece(about.offset) };
        }
        let is_known = self.knows(&about.secret)?;
        if path == PATH_EXIT {
            return self.take_exit(is_known, body);
        }
        if !is_known {
            return Ok(plain(StatusCode::FORBIDDEN));
        }
        match path {
            PATH_OUTPUT => remote.take_output(&self.folder, about.offset, body),
            // Whoever was stopped gives nothing more.
            _ if self.folder.is_stopped()? => Ok(plain(StatusCode::GONE)),
            PATH_TREE => remote.take_piece(&self.folder, about, body),
            _ => match serde_json::from_slice(body) {
                Ok(take) => remote.take_files(&self.folder, &take),
                Err(_) => Ok(plain(StatusCode::BAD_REQUEST)),
            },
        }
    }

    fn beginning(&self) -> io::Result<Answer> {
        let (Some(spec), Some(files)) = (self.folder.read::<StoredSpec>(FILE_SPEC)?, self.folder.read::<Parcel>(FILE_PARCEL)?) else {
            // They are being written.
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE));
        };
        let task = match fs::read_to_string(self.folder.path().join(FILE_TASK)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let bounds = bounds_of(&spec);
        Ok(json(&Beginning {
            task,
            files,
            is_taken_back: spec.run.role == Role::Agent,
            bytes_max: bounds.bytes_max,
            entries_max: bounds.entries_max,
            snapshot_millis: crate::sandbox::pod::SNAPSHOT_MILLIS,
            launch: spec.launch,
        }))
    }

    fn piece(&self, offset: u64) -> io::Result<Answer> {
        let mut piece = vec![0; PIECE_BYTES_MAX];
        let file = File::open(self.folder.path().join(FILE_FILES))?;
        let mut length = 0;
        while length < piece.len() {
            match file.read_at(&mut piece[length..], offset + length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        piece.truncate(length);
        Ok(said(StatusCode::OK, piece))
    }

    fn take_exit(&self, is_known: bool, body: &[u8]) -> io::Result<Answer> {
        let Ok(notice) = serde_json::from_slice::<ExitNotice>(body) else { return Ok(plain(StatusCode::BAD_REQUEST)) };
        let is_granted = self.folder.read::<Session>(FILE_SESSION)?.is_some();
        // Without a grant there is no secret, and nothing else to tell than that nothing began.
        if !is_known && (is_granted || !matches!(notice.report.cause, ExitCause::NotStarted(_))) {
            return Ok(plain(StatusCode::FORBIDDEN));
        }
        if let Some(why) = notice.untaken {
            self.folder.write_durably(FILE_UNTAKEN, &why)?;
        }
        self.folder.write_durably(FILE_EXIT, &notice.report)?;
        Ok(plain(StatusCode::OK))
    }
}

fn bounds_of(spec: &StoredSpec) -> Bounds {
    Bounds { bytes_max: spec.limits.disk_bytes, entries_max: spec.watch.inodes_max }
}

impl Remote {
    fn take_output(&self, folder: &RunFolder, offset: u64, bytes: &[u8]) -> io::Result<Answer> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.is_none() {
            let spec = folder.read::<StoredSpec>(FILE_SPEC)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            *log = Some(Ring::open(File::options().read(true).write(true).open(&spec.launch.log)?)?);
        }
        let ring = log.as_mut().expect("it was just opened");
        // What was heard already is not written again; what was lost on the way is shown as empty lines.
        let lost = offset.saturating_sub(ring.end()).min(ring.capacity());
        ring.append(&vec![b'\n'; usize::try_from(lost).unwrap_or(0)])?;
        let known = usize::try_from(ring.end().saturating_sub(offset)).unwrap_or(usize::MAX);
        ring.append(bytes.get(known..).unwrap_or_default())?;
        Ok(plain(StatusCode::OK))
    }

    fn take_piece(&self, folder: &RunFolder, about: &About, bytes: &[u8]) -> io::Result<Answer> {
        let mut coming = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if coming.closed || about.number <= taken(folder)? {
            return Ok(plain(if coming.closed { StatusCode::GONE } else { StatusCode::OK }));
        }
        let spec = folder.read::<StoredSpec>(FILE_SPEC)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let bounds = bounds_of(&spec);
        let end = about.offset.saturating_add(bytes.len() as u64);
        if end > bounds.bytes_max.saturating_add(bounds.entries_max.saturating_mul(ENTRY_BYTES_MAX)) {
            return Ok(said(StatusCode::UNPROCESSABLE_ENTITY, "its files are more than they may be"));
        }
        let begins = about.number != coming.number;
        let path = folder.path().join(FILE_COMING);
        let file = File::options().write(true).create(true).truncate(begins && about.offset == 0).mode(0o600).open(&path)?;
        if begins {
            (coming.number, coming.bytes) = (about.number, 0);
        }
        if about.offset > coming.bytes {
            return Ok(said(StatusCode::CONFLICT, "pieces before it are missing"));
        }
        file.write_all_at(bytes, about.offset)?;
        coming.bytes = coming.bytes.max(end);
        Ok(plain(StatusCode::OK))
    }

    fn take_files(&self, folder: &RunFolder, take: &Take) -> io::Result<Answer> {
        let mut coming = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if coming.closed || take.number <= taken(folder)? {
            return Ok(plain(if coming.closed { StatusCode::GONE } else { StatusCode::OK }));
        }
        let path = folder.path().join(FILE_COMING);
        let is_whole = coming.number == take.number && coming.bytes == take.parcel.bytes && parcel_of(&path)? == take.parcel;
        if !is_whole {
            coming.number = 0;
            return Ok(said(StatusCode::CONFLICT, "what arrived is not what was sent"));
        }
        let spec = folder.read::<StoredSpec>(FILE_SPEC)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if let Err(e) = lay_out(&path, folder, &spec) {
            let text = format!("its files could not be laid out: {e}");
            return if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge) {
                Ok(said(StatusCode::UNPROCESSABLE_ENTITY, text))
            } else {
                Err(io::Error::new(e.kind(), text))
            };
        }
        folder.write_durably(FILE_TAKEN, &take.number)?;
        fs::remove_file(&path)?;
        Ok(plain(StatusCode::OK))
    }
}

fn taken(folder: &RunFolder) -> io::Result<u64> {
    Ok(folder.read(FILE_TAKEN)?.unwrap_or(0))
}

/// How old what is here of a run's files is, for people.
pub(crate) fn age_of_files(folder: &RunFolder) -> String {
    match fs::metadata(folder.path().join(FILE_TAKEN)).and_then(|taken| taken.modified()).map(Timestamp::try_from) {
        Ok(Ok(at)) => format!("its files are kept as they were at {at:.0}"),
        Ok(Err(_)) | Err(_) => "its files are as they were before it began".to_owned(),
    }
}

fn lay_out(path: &Path, folder: &RunFolder, spec: &StoredSpec) -> io::Result<()> {
    let (tree, out) = (archive::open_root(&spec.launch.tree)?, archive::open_root(&folder.path().join(FOLDER_OUT))?);
    let home = spec.launch.home.as_deref().map(archive::open_root).transpose()?;
    let mut roots = vec![(Root::Out, &out)];
    if spec.run.role == Role::Agent {
        roots.push((Root::Workspace, &tree));
        roots.extend(home.as_ref().map(|home| (Root::Home, home)));
    }
    archive::lay_out(&mut io::BufReader::with_capacity(1 << 20, File::open(path)?), &roots, bounds_of(spec))
}

/// What a file is, as a parcel.
pub(crate) fn parcel_of(path: &Path) -> io::Result<Parcel> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Parcel { bytes: 0, sha256: to_hex(&Sha256::digest(b"")) }),
        other => other?,
    };
    let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Parcel { bytes, sha256: to_hex(&hash.finalize()) }),
            length => {
                hash.update(&piece[..length]);
                bytes += length as u64;
            }
        }
    }
}
