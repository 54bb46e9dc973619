// SPDX-License-Identifier: GPL-2.0-or-later

//! Client and server over real sockets, and what a hostile or broken other side can do.

mod common;

use std::io::{
    Read,
    Write, //
};
use std::net::{
    Shutdown,
    SocketAddr,
    TcpListener,
    TcpStream, //
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

use common::*;
use mars_core::wire::frame::*;
use mars_core::wire::message::*;
use mars_host_digest::HostDigest;
use mars_net::*;

fn connect(address: SocketAddr, me: &Local, timeout: Duration) -> Result<Client, NetError> {
    Client::connect(
        &address.to_string(),
        DEFAULT_PORT,
        Purpose::Join,
        None,
        me,
        timeout,
    )
}

fn refusal(error: NetError) -> (ErrorCode, String) {
    match error {
        NetError::Refused(refusal) => (refusal.code, refusal.to_string()),
        other => panic!("{other}"),
    }
}

/// What the server says to raw bytes, until it closes.
fn talk_raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset may follow: the server does not read what it will not use.
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn error_code(frame: &[u8]) -> ErrorCode {
    let header = Header::parse::<HostDigest>(frame, MAX_UNAUTHENTICATED).unwrap();
    assert_eq!(header.kind, Kind::Error.number());
    let (payload, _) = header
        .split_body::<HostDigest>(&frame[HEADER_LEN..])
        .unwrap();
    ErrorReply::decode(payload).unwrap().code
}

#[test]
fn given_a_member_when_asked_then_it_answers_over_both_families() {
    for ip in ["127.0.0.1", "::1"] {
        if TcpListener::bind((ip, 0)).is_err() {
            eprintln!("this machine has no {ip}");
            continue;
        }
        let server = Server::start(ip, local("beta", 1), &[]);
        let mut client = connect(server.address, &local("alpha", 1), TIMEOUT).unwrap();
        assert_eq!(client.peer().host, name("beta"));
        assert_eq!(client.connected_at, time(100));
        let pong = client.ping(time(1)).unwrap();
        assert_eq!((pong.now, pong.real), (time(100), time(99)));
        let (contact, age, text) = client.reach(name("gamma")).unwrap();
        assert_eq!((contact, age), (Contact::Seen, Duration::from_millis(1500)));
        assert_eq!(text, "connected");
        assert_eq!(client.reach(name("delta")).unwrap().0, Contact::Unknown);
        drop(client);
        assert!(server.end().is_ok());
    }
}

#[test]
fn given_a_new_host_when_it_joins_then_it_gets_the_whole_tree_with_itself() {
    let server = Server::start("127.0.0.1", local("beta", 1), &[]);
    for i in 0..100 {
        let link = (format!("ips/ip-host{i}"), format!("10.0.0.{i}"));
        server.links.lock().unwrap().push(link);
    }
    let me = Local {
        uuid: ANY_UUID.into(),
        ..local("alpha", 1)
    };
    let mut client = connect(server.address, &me, TIMEOUT).unwrap();
    let tree = client
        .join(name("alpha"), "10.1.1.1".parse().unwrap(), time(1))
        .unwrap();
    assert_eq!((tree.entries.len(), tree.skipped), (101, 0));
    assert!(tree.full);
    let own = tree
        .entries
        .iter()
        .find(|e| e.path == "ips/ip-alpha")
        .unwrap();
    assert_eq!((&own.value[..], own.stamp), (&b"10.1.1.1"[..], time(50)));
    let again = client
        .get_tree(Some((7, 8)), Duration::from_millis(50), time(1))
        .unwrap();
    assert_eq!(again, tree);

    let error = client
        .join(name("alpha"), "10.1.1.2".parse().unwrap(), time(1))
        .unwrap_err();
    assert_eq!(refusal(error).0, ErrorCode::Exists);
    assert!(
        client.ping(time(2)).is_ok(),
        "a refused request does not end the connection"
    );
}

#[test]
fn given_another_key_when_connected_then_both_sides_say_so() {
    let server = Server::start("127.0.0.1", local("beta", 1), &[]);
    let (code, text) = refusal(connect(server.address, &local("alpha", 2), TIMEOUT).unwrap_err());
    assert_eq!(code, ErrorCode::WrongKey);
    assert!(
        text.contains("alpha") && text.contains("beta") && text.contains("/mars/cluster-key"),
        "{text}"
    );
    let (code, text) = refusal(server.end().unwrap_err());
    assert_eq!(code, ErrorCode::WrongKey);
    assert!(text.starts_with("refused by the peer: "), "{text}");
}

#[test]
fn given_another_cluster_or_an_unknown_host_when_connected_then_the_reason_is_told() {
    let server = Server::start("127.0.0.1", local("beta", 1), &["gamma"]);
    let me = Local {
        uuid: "gamma_2.0".into(),
        ..local("alpha", 1)
    };
    let (code, text) = refusal(connect(server.address, &me, TIMEOUT).unwrap_err());
    assert_eq!(code, ErrorCode::WrongCluster);
    assert!(text.contains("gamma_2.0") && text.contains(UUID), "{text}");
    let (code, text) = refusal(connect(server.address, &local("alpha", 1), TIMEOUT).unwrap_err());
    assert_eq!(code, ErrorCode::UnknownPeer);
    assert!(text.contains("join-cluster"), "{text}");
    assert!(connect(server.address, &local("gamma", 1), TIMEOUT).is_ok());
}

#[test]
fn given_garbage_when_sent_to_a_server_then_it_answers_by_an_error_and_closes() {
    let server = Server::start("127.0.0.1", local("beta", 1), &[]);
    let hello = Header::new::<HostDigest>(Kind::Hello.number(), 0, &[b"nonsense"]).unwrap();
    let oversized = Header {
        len: MAX_UNAUTHENTICATED + 1,
        ..hello
    };
    let early = Header::new::<HostDigest>(Kind::GetTree.number(), 0, &[]).unwrap();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: beta\r\n\r\n"[..HEADER_LEN].to_vec(),
        vec![0; HEADER_LEN],
        [&hello.encode::<HostDigest>()[..], b"nonsense"].concat(),
        [&hello.encode::<HostDigest>()[..], b"nonsenso"].concat(),
        oversized.encode::<HostDigest>().to_vec(),
    ] {
        assert_eq!(
            error_code(&talk_raw(server.address, &bytes)),
            ErrorCode::BadMessage
        );
        assert!(server.end().is_err());
    }
    let answer = talk_raw(server.address, &early.encode::<HostDigest>());
    assert_eq!(error_code(&answer), ErrorCode::NotAllowed);
}

#[test]
fn given_a_server_of_something_else_when_connected_then_the_text_says_so() {
    let address = strange(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = connect(address, &local("alpha", 1), TIMEOUT).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("check that address and port belong to a MARS"),
        "{error}"
    );
}

#[test]
fn given_a_server_that_breaks_off_anywhere_when_connected_then_the_client_notices() {
    let server = Server::start("127.0.0.1", local("beta", 1), &[]);
    for cut in (0..300).step_by(7) {
        let target = server.address;
        let address = strange(move |client| {
            let mut upstream = TcpStream::connect(target).unwrap();
            let mut hello = [0; 1024];
            let n = (&client).read(&mut hello).unwrap();
            upstream.write_all(&hello[..n]).unwrap();
            let mut answer = vec![0; cut];
            let n = upstream.read(&mut answer).unwrap();
            let _ = (&client).write_all(&answer[..n]);
            let _ = client.shutdown(Shutdown::Both);
        });
        let error = connect(address, &local("alpha", 1), TIMEOUT).unwrap_err();
        assert!(
            matches!(error, NetError::Closed | NetError::Io(_)),
            "{cut}: {error}"
        );
    }
}

#[test]
fn given_a_server_that_is_silent_or_drips_when_connected_then_the_deadline_holds() {
    let timeout = Duration::from_millis(300);
    let silent = strange(|stream| {
        thread::sleep(TIMEOUT);
        drop(stream);
    });
    let dripping = strange(|mut stream| {
        while stream.write_all(b"M").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    for address in [silent, dripping] {
        let start = Instant::now();
        let error = connect(address, &local("alpha", 1), timeout).unwrap_err();
        assert!(matches!(error, NetError::TimedOut), "{error}");
        assert!(start.elapsed() < timeout * 5);
    }
}

#[test]
fn given_nobody_listens_when_connected_then_the_ports_are_named() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = connect(address, &local("alpha", 1), TIMEOUT).unwrap_err();
    assert!(error.is_temporary());
    assert!(error.to_string().contains("7777 to 7779"), "{error}");
}

/// Passes everything on, and keeps what the client sent.
fn recording_proxy(target: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let record = Arc::new(Mutex::new(Vec::new()));
    let kept = record.clone();
    let address = strange(move |client| {
        let server = TcpStream::connect(target).unwrap();
        let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || pump(from, to, |_| {}));
        pump(client, server, |bytes| kept.lock().unwrap().extend(bytes));
    });
    (address, record)
}

fn pump(mut from: TcpStream, mut to: TcpStream, see: impl Fn(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        see(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn given_a_recorded_connection_when_replayed_then_the_server_refuses() {
    let server = Server::start("127.0.0.1", local("beta", 1), &[]);
    let (address, record) = recording_proxy(server.address);
    let mut client = connect(address, &local("alpha", 1), TIMEOUT).unwrap();
    client
        .join(name("alpha"), "10.1.1.1".parse().unwrap(), time(1))
        .unwrap();
    drop(client);
    server.end().unwrap();
    server.links.lock().unwrap().clear();

    let recorded = record.lock().unwrap().clone();
    let answer = talk_raw(server.address, &recorded);
    let challenge = Header::parse::<HostDigest>(&answer, MAX_UNAUTHENTICATED).unwrap();
    assert_eq!(challenge.kind, Kind::Challenge.number());
    let next = HEADER_LEN + challenge.body_len();
    assert_eq!(error_code(&answer[next..]), ErrorCode::WrongKey);
    assert!(server.links.lock().unwrap().is_empty());
}
