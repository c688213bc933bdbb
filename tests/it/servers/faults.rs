//! A way to a server that fails: connections that are refused, broken off after any number of bytes in either direction, or slow.

use crate::e2e::harness::Random;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Most bytes that pass before a connection is broken off: more than a whole small push with its TLS.
const CUT_AFTER_BYTES_MAX: u64 = 12_000;
/// Slowest pause before each piece.
const PAUSE_MILLIS_MAX: u64 = 120;

/// What happens to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Refused,
    /// After so many bytes from the client.
    CutUp(u64),
    /// After so many bytes from the server.
    CutDown(u64),
    Slow(u64),
}

/// Forwards connections on loopback to a server there. Its threads end with the process.
pub struct FaultyWay {
    pub port: u16,
    is_faulty: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 5]>,
}

impl FaultyWay {
    /// Opens a way to this port.
    pub fn to(port: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self { port: listener.local_addr().unwrap().port(), is_faulty: Arc::default(), counts: Arc::default() };
        let (is_faulty, counts, random) = (this.is_faulty.clone(), this.counts.clone(), Mutex::new(Random(seed)));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let fault = if is_faulty.load(Ordering::SeqCst) { pick(&mut random.lock().unwrap()) } else { Fault::None };
                counts[kind(fault)].fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || forward(client, port, fault));
            }
        });
        this
    }

    /// Whether connections that come from now on may fail.
    pub fn set_faulty(&self, faulty: bool) {
        self.is_faulty.store(faulty, Ordering::SeqCst);
    }

    /// How many connections had which fault.
    pub fn report(&self) -> String {
        let names = ["whole", "refused", "cut on the way up", "cut on the way down", "slow"];
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        names.iter().zip(counts).map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }
}

fn pick(random: &mut Random) -> Fault {
    match random.below(12) {
        0 => Fault::Refused,
        1 | 2 => Fault::CutUp(random.below(CUT_AFTER_BYTES_MAX)),
        3 | 4 => Fault::CutDown(random.below(CUT_AFTER_BYTES_MAX)),
        5 => Fault::Slow(random.below(PAUSE_MILLIS_MAX)),
        _ => Fault::None,
    }
}

fn kind(fault: Fault) -> usize {
    match fault {
        Fault::None => 0,
        Fault::Refused => 1,
        Fault::CutUp(_) => 2,
        Fault::CutDown(_) => 3,
        Fault::Slow(_) => 4,
    }
}

fn forward(client: TcpStream, port: u16, fault: Fault) {
    if fault == Fault::Refused {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let (Ok(client_up), Ok(server_up)) = (client.try_clone(), server.try_clone()) else { return };
    let pause = if let Fault::Slow(millis) = fault { Duration::from_millis(millis) } else { Duration::ZERO };
    let limit = |wanted: Option<u64>| wanted.unwrap_or(u64::MAX);
    let up = limit(if let Fault::CutUp(bytes) = fault { Some(bytes) } else { None });
    let down = limit(if let Fault::CutDown(bytes) = fault { Some(bytes) } else { None });
    let uploads = std::thread::spawn(move || pump(client_up, server_up, up, pause));
    pump(server, client, down, pause);
    let _ = uploads.join();
}

/// Moves bytes until either end is over or the limit is reached; then both connections are broken.
fn pump(mut from: TcpStream, mut to: TcpStream, mut left: u64, pause: Duration) {
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        std::thread::sleep(pause);
        let passed = usize::try_from(left.min(length as u64)).unwrap();
        left -= passed as u64;
        if to.write_all(&piece[..passed]).is_err() || left == 0 {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    let _ = to.shutdown(if left == 0 { Shutdown::Both } else { Shutdown::Write });
}
