//! SOCKS5 messages: examples, properties, and what a server says to nonsense.

use proptest::prelude::*;

use super::*;

#[test]
fn the_greeting_chooses_the_login_where_it_is_offered() {
    assert_eq!(Method::choose(&[5, 1, 0]), Ok(Read::Whole(Method::Nobody)));
    assert_eq!(Method::choose(&[5, 2, 0, 2]), Ok(Read::Whole(Method::Login)));
    assert_eq!(Method::choose(&[5, 1, 1]), Ok(Read::Whole(Method::None)));
    assert_eq!(Method::choose(&[5, 0]), Ok(Read::Whole(Method::None)));
    assert_eq!(Method::choose(&[5, 9, 0]), Ok(Read::Missing(8)));
    assert_eq!(Method::choose(&[4, 1]), Err(Refusal::Silence));
    assert_eq!(Method::choose(&[]), Ok(Read::Missing(2)));
}

#[test]
fn every_malformed_request_has_its_reply() {
    let reply = |bytes: &[u8]| Request::parse(bytes).unwrap_err();
    assert_eq!(reply(&[4, 1, 0, 1]), Refusal::Reply(Reply::Failure));
    assert_eq!(reply(&[5, 2, 0, 1]), Refusal::Reply(Reply::UnknownCommand));
    assert_eq!(reply(&[5, 9, 0, 1]), Refusal::Reply(Reply::UnknownCommand));
    assert_eq!(reply(&[5, 1, 7, 1]), Refusal::Reply(Reply::Failure));
    assert_eq!(reply(&[5, 1, 0, 2, 0]), Refusal::Reply(Reply::UnknownAddress));
    assert_eq!(reply(&[5, 1, 0, 3, 1, 0xff, 0, 80]), Refusal::Reply(Reply::HostUnreachable));
    assert_eq!(reply(&[5, 1, 0, 3, 0, 0, 80]), Refusal::Reply(Reply::HostUnreachable));
    assert_eq!(reply(&[5, 1, 0, 1, 1, 2, 3, 4, 0, 0]), Refusal::Reply(Reply::Failure));
    assert_eq!(parse_login(&[5, 1]).unwrap_err(), Refusal::BadLogin);
    assert_eq!(Refusal::BadLogin.emit(), [1, 1]);
    assert_eq!(Refusal::Reply(Reply::UnknownCommand).emit(), [5, 7, 0, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_login_is_told_apart_by_user_and_password() {
    assert_eq!(parse_login(&[1, 1, b'a', 1, b'b']), Ok(Read::Whole(&[1, b'a', 1, b'b'][..])));
    assert_eq!(parse_login(&[1, 0, 0]), Ok(Read::Whole(&[0, 0][..])));
    assert_eq!(parse_login(&[1, 2, b'a']), Ok(Read::Missing(2)));
}

fn encode(target: &Target) -> Vec<u8> {
    let mut bytes = Vec::new();
    match &target.host {
        crate::client::Host::Address(ip) => {
            push_address(SocketAddr::new(*ip, target.port), &mut bytes);
        }
        crate::client::Host::Name(name) => {
            bytes.extend([NAME, name.len() as u8]);
            bytes.extend(name.as_bytes());
            bytes.extend(target.port.to_be_bytes());
        }
    }
    bytes
}

fn target() -> impl Strategy<Value = Target> {
    let host = prop_oneof![
        any::<u32>().prop_map(|v4| Ipv4Addr::from(v4).to_string()),
        any::<u128>().prop_map(|v6| Ipv6Addr::from(v6).to_string()),
        "[a-z0-9-]{1,20}\\.[a-z]{2,8}x".prop_map(|name| name),
    ];
    (host, 1..=u16::MAX).prop_map(|(host, port)| Target::new(&host, port).unwrap())
}

proptest! {
    #[test]
    fn a_request_is_read_whole_and_never_early(target in target()) {
        let mut bytes = vec![5, 1, 0];
        bytes.extend(encode(&target));
        for len in 0..bytes.len() {
            match Request::parse(&bytes[..len]) {
                Ok(Read::Missing(count)) => prop_assert!(count >= 1 && len + count <= bytes.len()),
                other => prop_assert!(false, "{other:?} after {len} bytes"),
            }
        }
        prop_assert_eq!(Request::parse(&bytes), Ok(Read::Whole(Request::Connect(target))));
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written(target in target(), payload: Vec<u8>) {
        let mut bytes = vec![0, 0, 0];
        bytes.extend(encode(&target));
        bytes.extend(&payload);
        prop_assert_eq!(parse_datagram(&bytes), Some((target, &payload[..])));
        bytes[2] = 1;
        prop_assert_eq!(parse_datagram(&bytes), None);
    }

    #[test]
    fn noise_is_refused_or_incomplete(bytes: Vec<u8>) {
        let _ = (Method::choose(&bytes), parse_login(&bytes), parse_datagram(&bytes));
        if let Ok(Read::Missing(count)) = Request::parse(&bytes) {
            prop_assert!((1..=258).contains(&count));
        }
    }
}
