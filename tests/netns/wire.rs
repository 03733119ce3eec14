//! A loop that moves batches between two TUN interfaces, as a tunnel would.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cepa::{capture::PacketDevice, model::PacketBatch};

/// Moves packets between the two interfaces until it is dropped.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    worker: Option<std::thread::JoinHandle<()>>,
    pub(crate) packets: Arc<AtomicUsize>,
    pub(crate) reads: Arc<AtomicUsize>,
}

impl Wire {
    pub(crate) fn between(
        mut left: Box<dyn PacketDevice>,
        mut right: Box<dyn PacketDevice>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (packets, reads) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let worker = std::thread::spawn({
            let (stop, packets, reads) = (stop.clone(), packets.clone(), reads.clone());
            move || {
                let mut batch = PacketBatch::default();
                let mut poll = mio::Poll::new().unwrap();
                let mut events = mio::Events::with_capacity(4);
                let readable = mio::Interest::READABLE;
                for (token, device) in [&left, &right].into_iter().enumerate() {
                    let fd = device.raw_fd();
                    let mut source = mio::unix::SourceFd(&fd);
                    poll.registry().register(&mut source, mio::Token(token), readable).unwrap();
                }
                while !stop.load(Ordering::Relaxed) {
                    poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
                    loop {
                        let there = pass(&mut *left, &mut *right, &mut batch, &packets, &reads);
                        let back = pass(&mut *right, &mut *left, &mut batch, &packets, &reads);
                        if !there && !back {
                            break;
                        }
                    }
                }
            }
        });
        Self { stop, worker: Some(worker), packets, reads }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.worker.take().unwrap().join();
    }
}

fn pass(
    from: &mut dyn PacketDevice,
    to: &mut dyn PacketDevice,
    batch: &mut PacketBatch,
    packets: &AtomicUsize,
    reads: &AtomicUsize,
) -> bool {
    batch.clear();
    while batch.byte_len() < 128 << 10 {
        match from.recv(batch) {
            Ok(_) => reads.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        };
    }
    packets.fetch_add(batch.len(), Ordering::Relaxed);
    assert!(batch.iter().all(|packet| packet.len() <= 1500));
    !batch.is_empty() && to.send(batch).is_ok()
}
