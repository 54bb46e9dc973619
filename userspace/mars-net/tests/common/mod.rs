// SPDX-License-Identifier: GPL-2.0-or-later

//! A small server of the metadata port: as simple as can be, but complete.

use std::net::{
    SocketAddr,
    TcpListener,
    TcpStream, //
};
use std::sync::mpsc::{
    self,
    Receiver, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use kernel::alloc::KVec;
use mars_core::lamport::LamportTime;
use mars_core::name::Name;
use mars_core::wire::auth::*;
use mars_core::wire::frame::*;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::meta::*;
use mars_core::wire::message::*;
use mars_core::wire::session::*;
use mars_host_digest::HostDigest;
use mars_net::{
    nonce,
    FrameStream,
    Local,
    NetError, //
};

pub const TIMEOUT: Duration = Duration::from_secs(5);
pub const UUID: &str = "alpha_1700000000.000000001";

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn time(sec: u64) -> LamportTime {
    LamportTime::new(sec, 0).unwrap()
}

pub fn key(seed: u8) -> ClusterKey {
    ClusterKey::new(std::array::from_fn(|i| seed.wrapping_add(i as u8))).unwrap()
}

pub fn local(host: &str, seed: u8) -> Local {
    Local {
        host: name(host),
        uuid: UUID.into(),
        key: key(seed),
        version: "test".into(),
    }
}

/// Entries of the tree.
pub type Links = Arc<Mutex<Vec<(String, String)>>>;

/// Runs until the test ends.
pub struct Server {
    pub address: SocketAddr,
    pub links: Links,
    /// How each connection ended.
    pub ends: Receiver<Result<(), NetError>>,
}

impl Server {
    /// Listens on `ip`. Hosts other than `members` are refused, if there are any.
    pub fn start(ip: &str, me: Local, members: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let links: Links = Arc::default();
        let (tell, ends) = mpsc::channel();
        let shared = links.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (me, links, tell) = (me.clone(), shared.clone(), tell.clone());
                thread::spawn(move || {
                    let stream =
                        FrameStream::new(stream.unwrap(), Instant::now() + TIMEOUT).unwrap();
                    let _ = tell.send(serve(stream, &me, members, &links));
                });
            }
        });
        Self {
            address,
            links,
            ends,
        }
    }

    pub fn end(&self) -> Result<(), NetError> {
        self.ends.recv_timeout(TIMEOUT).unwrap()
    }
}

/// Listens, and does something strange to the first connection.
pub fn strange(action: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || action(listener.accept().unwrap().0));
    address
}

fn shake_hands(
    stream: &mut FrameStream,
    me: &Local,
    members: &[&str],
) -> Result<Session, NetError> {
    let identity = Identity {
        host: me.host,
        uuid: &me.uuid,
        key: &me.key,
        version: &me.version,
        features: features::ALL,
        required: features::FRAME_MAC,
    };
    let mut handshake = ServerHandshake::new(identity, 0, nonce()?)?;
    let mut out = KVec::new();
    loop {
        out.clear();
        let received =
            stream.receive(|bytes| Header::parse::<HostDigest>(bytes, MAX_UNAUTHENTICATED));
        let (header, body) = match received {
            Err(NetError::Protocol(error)) => {
                let refusal = handshake.on_garbage::<HostDigest>(error, &mut out);
                stream.send(&out)?;
                return Err(refusal.into());
            }
            other => other?,
        };
        let step = handshake.on_frame::<HostDigest>(&header, &body, &mut out);
        if !out.is_empty() {
            stream.send(&out)?;
        }
        let ServerStep::Proved(peer, _) = step? else {
            continue;
        };
        out.clear();
        if !members.is_empty() && !members.contains(&peer.host.as_str()) {
            let refusal = Refusal::new(
                ErrorCode::UnknownPeer,
                format_args!(
                    "host {} is no member: 'marsadm join-cluster' there",
                    peer.host
                ),
            );
            handshake.refuse::<HostDigest>(&refusal, &mut out);
            stream.send(&out)?;
            return Err(refusal.into());
        }
        let session = handshake.welcome::<HostDigest>(time(100), &mut out)?;
        stream.send(&out)?;
        return Ok(session);
    }
}

fn serve(
    mut stream: FrameStream,
    me: &Local,
    members: &[&str],
    links: &Links,
) -> Result<(), NetError> {
    let mut session = shake_hands(&mut stream, me, members)?;
    let mut out = KVec::new();
    loop {
        stream.set_deadline(Instant::now() + TIMEOUT);
        let received = stream.receive(|bytes| session.rx.header::<HostDigest>(bytes));
        let (header, body) = match received {
            Err(NetError::Closed) => return Ok(()),
            other => other?,
        };
        out.clear();
        let tx = &mut session.tx;
        let reply = match session.rx.open::<HostDigest>(&header, &body) {
            Ok((kind, payload)) => answer(kind, payload, header.id, tx, links, &mut out),
            Err(error) => Err(error.into()),
        };
        if let Err(refusal) = reply {
            out.clear();
            tx.message::<HostDigest, _>(header.id, &refusal.reply(), &mut out)?;
        }
        stream.send(&out)?;
    }
}

fn answer(
    kind: Kind,
    payload: &[u8],
    id: u32,
    tx: &mut Sender,
    links: &Links,
    out: &mut KVec<u8>,
) -> Result<(), Refusal> {
    match kind {
        Kind::Ping => {
            Ping::decode(payload)?;
            let pong = Pong {
                now: time(100),
                real: time(99),
            };
            tx.message::<HostDigest, _>(id, &pong, out)?;
        }
        Kind::Reach => {
            let Reach { host } = Reach::decode(payload)?;
            let known = host == name("gamma");
            let contact = if known {
                Contact::Seen
            } else {
                Contact::Unknown
            };
            let reached = Reached {
                contact,
                age_ms: 1500,
                text: "connected",
            };
            tx.message::<HostDigest, _>(id, &reached, out)?;
        }
        Kind::Join => {
            let join = Join::decode(payload)?;
            let link = (format!("ips/ip-{}", join.host), join.ip.into());
            let mut links = links.lock().unwrap();
            if links
                .iter()
                .any(|(path, value)| *path == link.0 && *value != link.1)
            {
                return Err(Refusal::new(
                    ErrorCode::Exists,
                    format_args!("host {} is a member already", join.host),
                ));
            }
            links.push(link);
            send_tree(id, tx, &links, out)?;
        }
        Kind::GetTree => {
            let request = GetTree::decode(payload)?;
            thread::sleep(Duration::from_millis(request.wait_ms.into()));
            send_tree(id, tx, &links.lock().unwrap(), out)?;
        }
        _ => {
            return Err(Refusal::new(
                ErrorCode::Unsupported,
                format_args!("not here"),
            ))
        }
    }
    Ok(())
}

/// In parts that are so small that there are several.
fn send_tree(
    id: u32,
    tx: &mut Sender,
    links: &[(String, String)],
    out: &mut KVec<u8>,
) -> Result<(), Refusal> {
    let head = TreeHead {
        instance: 7,
        generation: 8,
        full: true,
        now: time(100),
    };
    let mut rest = links;
    loop {
        tx.payload::<HostDigest>(Kind::Tree, id, out, |out| {
            let mut writer = TreeWriter::new(out, 400, &head)?;
            while let Some(((path, value), next)) = rest.split_first() {
                let value = value.as_bytes();
                if !writer.push(&Entry {
                    path,
                    value,
                    stamp: time(50),
                })? {
                    break;
                }
                rest = next;
            }
            writer.finish(!rest.is_empty())
        })?;
        if rest.is_empty() {
            return Ok(());
        }
    }
}
