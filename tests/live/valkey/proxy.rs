//! A proxy in front of a server that can be slow, swallow everything, lose answers, or be gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the proxy does with what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Hands everything on.
    Pass,
    /// Hands answers on two seconds late.
    Slow,
    /// Keeps connections open and hands nothing on: half-open TCP.
    Swallow,
    /// Hands requests on, and breaks the connection in place of the answer.
    CutAnswers,
    /// Breaks every connection at once.
    Gone,
}

#[derive(Clone)]
pub struct Proxy {
    pub port: u16,
    mode: Arc<AtomicU8>,
    accepted: Arc<AtomicUsize>,
}

impl Proxy {
    /// Starts one in front of a port of this machine; it ends with the runtime.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy =
            Self { port: listener.local_addr().unwrap().port(), mode: Arc::new(AtomicU8::new(Mode::Pass as u8)), accepted: Arc::default() };
        let this = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                this.accepted.fetch_add(1, Ordering::SeqCst);
                let this = this.clone();
                tokio::spawn(async move { this.serve(client, target).await });
            }
        });
        proxy
    }

    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    pub fn url(&self) -> String {
        format!("valkey://127.0.0.1:{}", self.port)
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn is(&self, mode: Mode) -> bool {
        self.mode.load(Ordering::SeqCst) == mode as u8
    }

    async fn serve(&self, client: TcpStream, target: u16) {
        if self.is(Mode::Gone) {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
        let requests = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                if self.is(Mode::Gone) {
                    return;
                }
                if !self.is(Mode::Swallow) && to_server.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        };
        let answers = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                if self.is(Mode::Gone) || self.is(Mode::CutAnswers) {
                    return;
                }
                if self.is(Mode::Slow) {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                if !self.is(Mode::Swallow) && to_client.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        };
        let gone = async {
            while !self.is(Mode::Gone) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = requests => {}
            () = answers => {}
            () = gone => {}
        }
    }
}
