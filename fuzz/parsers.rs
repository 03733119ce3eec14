//! Every parser of foreign bytes, under one signature.
//!
//! In: any bytes. Out: nothing; a panic is the finding.
//! Called by: the fuzz targets, and `tests/fuzz_replay.rs`, which replays the corpus.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
    time::{Duration, Instant},
};

use cepa::{
    client::{http::head, socks::message},
    dcnet::{
        arq::SlotCell,
        blame::{Answer as BlameAnswer, Ask, Case, Question, VerdictFile, View},
        ceremony::{self, Plan},
        group::{Group, Pseudonyms, Session, Settings, System},
        interval::{Interval, IntervalFile, SignedInterval},
        member::parse_interval,
        message::{Down, Share, next_frame},
        mux::Mux,
        seed::read_cell,
    },
    directory::{
        ControllerLink, Entry, JoinToken, NodeAnswer, NodeList, Problem, Registration,
        SignedDescriptor, SignedDirectory, TokenId,
    },
    forward::{
        exit::{AddressPool, ExitLimits, ExitTable},
        flow::PacketFlow,
        ip::Headers,
        neighbours::Neighbours,
        stream::{BodySink, Packer, Reassembler},
    },
    model::{
        BODY_LEN, CELL_LEN, CLIENT_INNER_V4, CLIENT_INNER_V6, CircuitKey, DropCounters, ExitPolicy,
        NodeId, PacketBatch,
    },
    peer::{
        geometry::Size,
        link::ShareLink,
        manifest::Manifest,
        message::{ChunkHead, Message, parse_proof},
        tree::Root,
    },
    telemetry::control::Request,
    wire::{
        Answer, BodyHeader, ControlFragment, CreatePrefix, ExtendValue, OaepPlain, PairMessage,
        Probe, ProbeAnswer,
        share::{
            BridgeDatagram, BridgeNotice, ChannelFrame, CodeGreeting, CodeHead, CodePart, CodeSlot,
            Envelope, JoinPrefix, Order, Segment, ToPeer, ToTracker, parse_route,
        },
    },
};
use rand::{SeedableRng, rngs::StdRng};

/// A parser's name, which is also the name of its target and of its corpus, and the parser.
pub(crate) type Parser = (&'static str, fn(&[u8]));

/// Every parser.
pub(crate) const ALL: &[Parser] = &[
    ("body", body),
    ("control", control),
    ("extend", extend),
    ("create", create),
    ("answer", answer),
    ("oaep_plain", oaep_plain),
    ("pair", pair),
    ("probe", probe),
    ("inner_packet", inner_packet),
    ("stream", stream),
    ("inside_frame", inside_frame),
    ("exit", exit),
    ("exit_policy", exit_policy),
    ("link", link),
    ("descriptor", descriptor),
    ("directory", directory),
    ("answers", answers),
    ("request", request),
    ("dcnet_interval", dcnet_interval),
    ("dcnet_message", dcnet_message),
    ("dcnet_blame", dcnet_blame),
    ("dcnet_cell", dcnet_cell),
    ("share_message", share_message),
    ("share_envelope", share_envelope),
    ("share_order", share_order),
    ("share_channel", share_channel),
    ("share_bridge", share_bridge),
    ("share_code", share_code),
    ("dcnet_answer", dcnet_answer),
    ("dcnet_files", dcnet_files),
    ("peer_link", peer_link),
    ("peer_message", peer_message),
    ("peer_list", peer_list),
    ("socks", socks),
    ("http_proxy", http_proxy),
];

/// Runs the parser called `name`.
#[allow(dead_code, reason = "the targets use it, the replay does not")]
pub(crate) fn run(name: &str, bytes: &[u8]) {
    let parser = ALL.iter().find(|(known, _)| *known == name);
    parser.expect("a target is named after its parser").1(bytes);
}

/// The first bytes as a body, zeros behind.
fn as_body(bytes: &[u8]) -> [u8; BODY_LEN] {
    let mut body = [0; BODY_LEN];
    let length = bytes.len().min(BODY_LEN);
    body[..length].copy_from_slice(&bytes[..length]);
    body
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn body(bytes: &[u8]) {
    let body = as_body(bytes);
    if let Ok(header) = BodyHeader::parse(&body) {
        let mut again = body;
        header.emit(&mut again);
        assert_eq!(again[8..], body[8..], "what was read is written the same");
    }
}

fn control(bytes: &[u8]) {
    let body = as_body(bytes);
    if let Ok(fragment) = ControlFragment::parse(&body) {
        let mut again = [0; BODY_LEN];
        fragment.emit(&mut again).expect("what was read can be written");
        let read = ControlFragment::parse(&again).expect("what was written can be read");
        assert_eq!((read.request, read.value), (fragment.request, fragment.value));
    }
}

fn extend(bytes: &[u8]) {
    if let Ok(value) = ExtendValue::parse(bytes) {
        assert!(ExtendValue::parse(&value.emit()).is_ok_and(|again| again == value));
    }
}

fn create(bytes: &[u8]) {
    if let Ok(prefix) = CreatePrefix::parse(bytes) {
        assert!(bytes.starts_with(prefix.as_bytes()));
    }
}

fn answer(bytes: &[u8]) {
    let _ = Answer::parse(bytes);
}

fn oaep_plain(bytes: &[u8]) {
    if let Some(plain) = OaepPlain::parse(bytes) {
        assert_eq!(plain.emit()[..], *bytes);
    }
}

fn pair(bytes: &[u8]) {
    let _ = PairMessage::parse(bytes);
}

fn probe(bytes: &[u8]) {
    let _ = Probe::parse(bytes);
    let _ = ProbeAnswer::parse(bytes);
}

fn inner_packet(bytes: &[u8]) {
    let _ = Headers::parse(bytes);
    let _ = Headers::parse_start(bytes);
    let _ = PacketFlow::parse(bytes);
}

/// Frames of devices behind a gateway that captures them raw.
fn inside_frame(bytes: &[u8]) {
    let networks = [([192, 168, 77, 1].into(), 24), ([0xfd78, 0, 0, 0, 0, 0, 0, 1].into(), 64)];
    let mut neighbours = Neighbours::new([2, 0, 0, 0, 0, 1], &networks);
    let _ = neighbours.handle_frame(bytes);
    let _ = neighbours.header_for(bytes);
}

/// Bodies of a circuit, out of order and with gaps: a step and a mark before each.
fn stream(bytes: &[u8]) {
    let mut reassembler = Reassembler::new();
    let mut packets = PacketBatch::default();
    let mut drops = DropCounters::default();
    let mut seq: u32 = 1000;
    for piece in bytes.chunks(BODY_LEN + 2) {
        let (&[step, mark], rest) = piece.split_first_chunk().unwrap_or((&[0, 0], &[]));
        seq = seq.wrapping_add(u32::from(step % 8)).wrapping_sub(2);
        let body = as_body(rest);
        let data = mark % 4 != 0;
        reassembler.push(seq, data.then_some(&body), &mut packets, &mut drops);
        for packet in packets.iter() {
            assert!(Headers::parse_start(packet).is_ok() || packet.len() <= 1500);
        }
        packets.clear();
        assert!(reassembler.heap_bytes() <= 64 << 10, "its memory is bounded");
    }
}

/// Bodies of a stream, as a client fills them.
#[derive(Default)]
struct Bodies(Vec<[u8; BODY_LEN]>);

impl BodySink for Bodies {
    fn next_body(&mut self) -> &mut [u8; BODY_LEN] {
        self.0.push([0; BODY_LEN]);
        self.body()
    }

    fn body(&mut self) -> &mut [u8; BODY_LEN] {
        self.0.last_mut().expect("a body is asked for before it is filled")
    }
}

/// Packets of a client through an exit, each behind its length in two bytes.
fn exit(bytes: &[u8]) {
    const MOST: u32 = 4;
    let now = Instant::now();
    let v4 = (Ipv4Addr::new(100, 65, 0, 0), 24);
    let v6 = (Ipv6Addr::new(0xfd63, 0x6570, 0x6101, 0, 0, 0, 0, 0), 112);
    let pool = AddressPool::new(v4, v6, Duration::ZERO).expect("these are networks");
    let limits = ExitLimits { connections: MOST, ..ExitLimits::default() };
    let mut table = ExitTable::new(ExitPolicy::default(), limits, pool, now);
    let key = CircuitKey(0);
    let own = table.attach(key, now).expect("the pool is empty");
    let (mut device, mut replies) = (PacketBatch::default(), PacketBatch::default());
    let mut drops = DropCounters::default();
    let mut rest = bytes;
    let mut seq = 1000;
    while let Some((length, behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length) % 2048).min(behind.len());
        let (packet, behind) = behind.split_at(length);
        rest = behind;
        let (mut bodies, mut packer) = (Bodies::default(), Packer::new());
        if packer.push(packet, &mut bodies).is_err() {
            continue;
        }
        packer.flush(&mut bodies);
        let before = table.connections();
        for body in &bodies.0 {
            table.outbound(now, key, seq, Some(body), &mut device, &mut replies, &mut drops);
            seq += 1;
        }
        assert!(table.connections() <= MOST as usize, "the cap holds");
        let flags = PacketFlow::parse(packet).ok().and_then(|flow| flow.tcp_flags);
        if flags.is_some_and(|flags| flags & 0x02 != 0 && flags & 0x05 != 0) {
            assert!(device.is_empty(), "a SYN that also closes leaves no exit");
            assert_eq!(table.connections(), before, "and starts no connection");
        }
        for packet in device.iter() {
            let headers = Headers::parse(packet).expect("what leaves is a packet");
            let source = headers.source(packet);
            assert!(source == own.v4 || source == own.v6, "it leaves with its circuit's address");
            assert!(!table.pool().contains(headers.destination(packet)), "and out of the pool");
        }
        for reply in replies.iter() {
            let headers = Headers::parse(reply).expect("an answer is a packet");
            let to = headers.destination(reply);
            assert!(to == CLIENT_INNER_V4 || to == CLIENT_INNER_V6, "it is for the client");
        }
        device.clear();
        replies.clear();
    }
    let memory = table.info(key).map_or(0, |info| info.memory_bytes);
    assert!(memory <= 80 << 10, "its memory is bounded: {memory}");
}

fn exit_policy(bytes: &[u8]) {
    if let Ok(policy) = text(bytes).parse::<ExitPolicy>() {
        assert_eq!(policy.to_string().parse().as_ref(), Ok(&policy));
        let _ = policy.allows([192, 0, 2, 1].into(), Some(443));
    }
}

fn link(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(link) = text.parse::<ControllerLink>() {
        assert_eq!(link.to_string().parse::<ControllerLink>().ok(), Some(link));
    }
    let _ = text.parse::<JoinToken>();
    let _ = text.parse::<TokenId>();
    let _ = text.parse::<NodeId>();
}

fn descriptor(bytes: &[u8]) {
    let signed = SignedDescriptor { bytes: bytes.to_vec(), signature: vec![0; 384] };
    assert!(signed.verify().is_err(), "nobody signed this");
    let _ = serde_json::from_slice::<Registration>(bytes);
}

fn directory(bytes: &[u8]) {
    let _ = SignedDirectory::parse(bytes);
}

fn answers(bytes: &[u8]) {
    let _ = serde_json::from_slice::<NodeAnswer>(bytes);
    let _ = serde_json::from_slice::<NodeList>(bytes);
    let _ = serde_json::from_slice::<Entry>(bytes);
    let _ = serde_json::from_slice::<Problem>(bytes);
}

fn request(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Request>(bytes);
}

fn dcnet_interval(bytes: &[u8]) {
    if let Ok(interval) = Interval::parse(bytes) {
        assert_eq!(interval.to_bytes(), bytes);
    }
    let _ = SignedInterval::parse(bytes);
    let _ = parse_interval(bytes);
}

fn dcnet_message(bytes: &[u8]) {
    const CELL: usize = 64;
    if let Ok(down) = Down::parse(bytes, CELL) {
        assert_eq!(down.to_bytes(), bytes);
    }
    if let Ok(share) = Share::parse(bytes, CELL) {
        assert_eq!(share.to_bytes(), bytes);
    }
    if let Ok(Some((_, body, used))) = next_frame(bytes) {
        assert_eq!(body.len() + 5, used);
    }
}

fn dcnet_blame(bytes: &[u8]) {
    if let Ok(ask) = Ask::parse(bytes) {
        assert_eq!(ask.to_bytes(), bytes);
        let _ = matches!(ask.question, Question::Key);
    }
    if let Ok(file) = VerdictFile::parse(bytes) {
        assert_eq!(file.to_bytes(), bytes);
    }
    if let Ok(case) = Case::parse(bytes) {
        assert_eq!(Case::parse(&case.to_bytes()).as_ref(), Ok(&case));
    }
}

fn dcnet_cell(bytes: &[u8]) {
    if let Ok(cell) = SlotCell::parse(bytes) {
        assert_eq!(cell.emit(bytes.len()), bytes);
        let _ = Mux::default().handle(cell.frames, true, &mut Vec::new());
    }
    let _ = Mux::default().handle(bytes, true, &mut Vec::new());
    let _ = read_cell(bytes);
}

fn share_message(bytes: &[u8]) {
    if let Ok(message) = ToTracker::parse(bytes) {
        assert_eq!(ToTracker::parse(&message.emit()), Ok(message));
    }
    if let Ok(message) = ToPeer::parse(bytes) {
        assert_eq!(ToPeer::parse(&message.emit()), Ok(message));
    }
}

fn share_envelope(bytes: &[u8]) {
    match Envelope::parse(bytes) {
        Ok(Envelope::Bytes { cid, payload }) => {
            let body = Envelope::emit_bytes(cid, &payload);
            assert_eq!(Envelope::parse(&body), Ok(Envelope::Bytes { cid, payload }));
        }
        Ok(Envelope::Order(order)) => {
            let body = Envelope::emit_order(&order);
            assert_eq!(Envelope::parse(&body), Ok(Envelope::Order(order)));
        }
        Err(_) => {}
    }
}

fn share_order(bytes: &[u8]) {
    if let Ok(order) = Order::parse(bytes) {
        assert_eq!(Order::parse(&order.emit()), Ok(order));
    }
}

fn share_channel(bytes: &[u8]) {
    if let Ok(frame) = ChannelFrame::parse(bytes) {
        assert_eq!(ChannelFrame::parse(&frame.emit()), Ok(frame));
    }
    if let Ok(segment) = Segment::parse(bytes) {
        assert_eq!(Segment::parse(&segment.emit()).map(|read| read.bytes), Ok(segment.bytes));
    }
}

fn share_bridge(bytes: &[u8]) {
    let mut body = [0; BODY_LEN];
    let length = bytes.len().min(BODY_LEN);
    body[..length].copy_from_slice(&bytes[..length]);
    let _ = BridgeDatagram::parse(&body);
    let _ = BridgeNotice::parse(bytes);
    if let Ok(join) = JoinPrefix::parse(bytes) {
        assert_eq!(JoinPrefix::parse(&join.emit()), Ok(join));
    }
}

/// A cell as a relay sees it, and what a code brings once it is open.
fn share_code(bytes: &[u8]) {
    let mut cell = [0; CELL_LEN];
    let length = bytes.len().min(CELL_LEN);
    cell[..length].copy_from_slice(&bytes[..length]);
    let message = CodeHead::parse_message(&cell);
    for head in CodeHead::parse_setup(&cell).into_iter().chain([message]) {
        let mut again = cell;
        head.emit(&mut again);
        assert_eq!(again, cell, "what was read is written the same");
    }
    if let Some(Ok(slot)) = bytes.first_chunk().map(CodeSlot::parse) {
        assert_eq!(bytes.first_chunk(), Some(&slot.emit()));
    }
    if let Ok(greeting) = CodeGreeting::parse(bytes) {
        let mut again = [0; 958];
        greeting.emit(&mut again);
        assert_eq!(CodeGreeting::parse(&again), Ok(greeting));
    }
    if let Ok(part) = CodePart::parse(bytes) {
        let mut again = [0; 3000];
        part.emit(&mut again);
        assert!(CodePart::parse(&again).is_ok_and(|again| again.heard == part.heard));
    }
    let _ = parse_route(bytes);
}

/// An answer of blame is read in an interval of a group.
fn dcnet_answer(bytes: &[u8]) {
    static GROUP: OnceLock<(Group, Interval)> = OnceLock::new();
    let (group, interval) = GROUP.get_or_init(|| {
        let settings = Settings::default();
        let plan = Plan { clients: 3, trustees: 2, host: String::new(), port: 1, settings };
        let files = ceremony::generate(&plan, &mut StdRng::seed_from_u64(1)).unwrap();
        let interval = files.interval.interval.clone();
        (Group::check(files.system, files.session, &files.pseudonyms).unwrap(), interval)
    });
    assert!(BlameAnswer::parse(bytes, &View::of_trustee(group, interval, &[0; 32])).is_err());
}

fn dcnet_files(bytes: &[u8]) {
    if let Ok(system) = serde_json::from_slice::<System>(bytes) {
        let _ = system.keys();
    }
    let _ = serde_json::from_slice::<Session>(bytes);
    let _ = serde_json::from_slice::<Pseudonyms>(bytes);
    if let Ok(file) = serde_json::from_slice::<IntervalFile>(bytes) {
        let _ = SignedInterval::parse(&file.signed);
    }
    if let Ok(file) = serde_json::from_slice::<VerdictFile>(bytes) {
        let _ = Case::parse(&file.case);
    }
}

fn peer_link(bytes: &[u8]) {
    if let Ok(link) = text(bytes).parse::<ShareLink>() {
        assert_eq!(link.to_string().parse(), Ok(link));
    }
}

fn peer_message(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        assert_eq!(&message.emit()[4..], bytes);
    }
    if let Some(head) = bytes.first_chunk() {
        let _ = ChunkHead::parse(*head);
        let _ = Message::parse_length([head[0], head[1], head[2], head[3]]);
    }
    if let Ok(size) = Size::try_from(3 << 20) {
        let _ = parse_proof(Root([0; 32]), size, u32::from(bytes.len() as u8 % 13), bytes);
    }
}

fn peer_list(bytes: &[u8]) {
    let (size, rest) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
    let Ok(size) = Size::try_from(u64::from_be_bytes(*size)) else { return };
    if let Ok(list) = Manifest::parse(rest, size) {
        assert_eq!(list.emit(), rest);
    }
}

fn socks(bytes: &[u8]) {
    use message::{Method, Read, Request};
    // The server asks for what is missing: it must never be nothing, nor more than a message has.
    for missing in [
        Method::choose(bytes).map(|read| matches!(read, Read::Missing(0 | 259..))),
        Request::parse(bytes).map(|read| matches!(read, Read::Missing(0 | 259..))),
        message::parse_login(bytes).map(|read| matches!(read, Read::Missing(0 | 259..))),
    ] {
        assert_ne!(missing, Ok(true), "{bytes:?}");
    }
    let _ = message::parse_datagram(bytes);
}

fn http_proxy(bytes: &[u8]) {
    if let Ok(head::Read::Whole(read, len)) = head::parse(bytes) {
        assert!(len <= bytes.len());
        if let head::Asked::Forward { head, .. } = read.asked {
            assert!(head.ends_with(b"\r\n\r\n"));
            let ends = head.windows(4).filter(|window| window == b"\r\n\r\n").count();
            assert_eq!(ends, 1, "one request goes on, not two");
        }
    }
}
