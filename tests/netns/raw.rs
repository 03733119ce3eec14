//! Listening on a cable: every frame of both directions, none of another interface.

use std::{net::UdpSocket, time::Duration, time::Instant};

use cepa::capture::raw::Sniffer;

use crate::{cable, namespaces};

#[test]
fn a_sniffer_hears_its_interface_and_no_other() {
    let Some([here, there]) = namespaces::<2>() else { return };
    cable((&here, "a", &["192.0.2.1/24"]), (&there, "b", &["192.0.2.2/24"]));
    cable((&here, "c", &["198.51.100.1/24"]), (&there, "d", &["198.51.100.2/24"]));
    let mut sniffer = here.run(|| Sniffer::open("a").unwrap()).unwrap();
    let left = here.run(|| UdpSocket::bind("0.0.0.0:7").unwrap()).unwrap();
    let right = there.run(|| UdpSocket::bind("0.0.0.0:7").unwrap()).unwrap();
    left.send_to(b"to the right, by a", "192.0.2.2:7").unwrap();
    right.send_to(b"to the left, by a", "192.0.2.1:7").unwrap();
    left.send_to(b"by the other cable", "198.51.100.2:7").unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut heard = Vec::new();
    while Instant::now() < deadline {
        if let Some(frame) = sniffer.next_frame().unwrap() {
            heard.push(String::from_utf8_lossy(frame).into_owned());
        }
    }
    for text in ["to the right, by a", "to the left, by a"] {
        assert!(heard.iter().any(|frame| frame.contains(text)), "{text}");
    }
    assert!(!heard.iter().any(|frame| frame.contains("by the other cable")));
    assert_eq!(sniffer.lost(), 0);
    assert!(here.run(|| Sniffer::open("zz").unwrap_err().to_string()).unwrap().contains("zz"));
}
