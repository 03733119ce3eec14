//! A socket made of bridge datagrams: what a transport between two peers sends and receives on.
//!
//! In: runs of datagrams of one end. Out: the same at the other. Called by: the client's data path
//! (one end), `peer_run` (the other).
//!
//! Runs of equal datagrams travel as one buffer, under one lock per run; buffers go back and forth
//! and are not allocated anew. Both queues are bounded in bytes: what does not fit waits at the
//! sender (`WouldBlock`).

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Bytes that wait in one direction, at most.
const MOST_QUEUED: usize = 2 << 20;
/// Buffers kept for reuse in one direction.
const MOST_SPARE: usize = 64;
/// What one run holds at most, so that any reader's buffer takes it.
pub const MOST_RUN: usize = 60_000;

/// Datagrams back to back: each `segment` bytes, the last one possibly shorter.
#[derive(Debug, Default)]
pub struct DatagramRun {
    /// The datagrams.
    pub bytes: Vec<u8>,
    /// The length of each but the last.
    pub segment: usize,
}

impl DatagramRun {
    /// Appends a datagram; says whether it fits this run.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        if self.bytes.is_empty() {
            self.segment = datagram.len();
        } else if datagram.len() > self.segment
            || !self.bytes.len().is_multiple_of(self.segment)
            || self.bytes.len() + datagram.len() > MOST_RUN
        {
            return false;
        }
        if datagram.is_empty() {
            return true;
        }
        self.bytes.extend_from_slice(datagram);
        true
    }

    /// The datagrams one by one.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// One end of a bridge. Dropping it closes both directions.
#[derive(Debug)]
pub struct BridgeSocket {
    send: Arc<Queue>,
    recv: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    runs: VecDeque<DatagramRun>,
    bytes: usize,
    spare: Vec<DatagramRun>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Every change under the lock is whole; a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let wakers = [waiting.reader.take(), waiting.writer.take()];
        drop(waiting);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Waiting {
    fn has_room(&self) -> bool {
        self.bytes < MOST_QUEUED
    }
}

impl BridgeSocket {
    /// Two ends that are joined.
    pub fn pair() -> (Self, Self) {
        let (one, other) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
        let first = Self { send: Arc::clone(&one), recv: Arc::clone(&other) };
        (first, Self { send: other, recv: one })
    }

    /// Sends datagrams of `segment` bytes each, back to back; the last one may be shorter.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full ([`Self::poll_writable`] says when to come again);
    /// `BrokenPipe` when the bridge fell.
    pub fn try_send(&self, bytes: &[u8], segment: usize) -> io::Result<()> {
        self.push(|run| {
            run.bytes.extend_from_slice(bytes);
            run.segment = segment.max(1);
        })
    }

    /// Sends a run and leaves an empty one in its place, with a buffer that was used before.
    ///
    /// # Errors
    /// As [`Self::try_send`]; the run then stays.
    pub fn try_send_run(&self, run: &mut DatagramRun) -> io::Result<()> {
        self.push(|spare| std::mem::swap(spare, run))?;
        run.bytes.clear();
        Ok(())
    }

    fn push(&self, fill: impl FnOnce(&mut DatagramRun)) -> io::Result<()> {
        let mut waiting = self.send.lock();
        if waiting.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !waiting.has_room() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut run = waiting.spare.pop().unwrap_or_default();
        run.bytes.clear();
        fill(&mut run);
        waiting.bytes += run.bytes.len();
        waiting.runs.push_back(run);
        let reader = waiting.reader.take();
        drop(waiting);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// Ready when there is room to send.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.send.lock();
        if waiting.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if waiting.has_room() {
            return Poll::Ready(Ok(()));
        }
        waiting.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Fills one buffer per run and says how long each run and its datagrams are.
    ///
    /// # Errors
    /// `BrokenPipe` when the bridge fell and nothing waits any more.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        lengths: &mut [(usize, usize)],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.recv.lock();
        let mut filled = 0;
        for (buffer, length) in buffers.iter_mut().zip(lengths) {
            let Some(run) = waiting.runs.pop_front() else { break };
            let fits = run.bytes.len().min(buffer.len());
            buffer[..fits].copy_from_slice(&run.bytes[..fits]);
            *length = (fits, run.segment);
            waiting.bytes -= run.bytes.len();
            filled += 1;
            if waiting.spare.len() < MOST_SPARE {
                waiting.spare.push(run);
            }
        }
        if filled > 0 {
            let writer = waiting.writer.take();
            drop(waiting);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Ok(filled));
        }
        if waiting.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        waiting.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes up to `most` runs that wait, giving back those in `runs`; `waker` is woken when the
    /// queue was empty and something comes.
    pub fn drain(&self, runs: &mut Vec<DatagramRun>, most: usize, waker: &Waker) {
        let mut waiting = self.recv.lock();
        let room = MOST_SPARE.saturating_sub(waiting.spare.len());
        runs.truncate(room);
        waiting.spare.append(runs);
        while runs.len() < most
            && let Some(run) = waiting.runs.pop_front()
        {
            waiting.bytes -= run.bytes.len();
            runs.push(run);
        }
        if runs.len() < most && !waiting.reader.as_ref().is_some_and(|w| w.will_wake(waker)) {
            waiting.reader = Some(waker.clone());
        }
        let writer = if runs.is_empty() { None } else { waiting.writer.take() };
        drop(waiting);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Whether the other end is gone or the bridge fell.
    pub fn is_closed(&self) -> bool {
        self.send.lock().closed
    }

    /// Closes both directions; what waits can still be read.
    pub fn close(&self) {
        self.send.close();
        self.recv.close();
    }
}

impl Drop for BridgeSocket {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &BridgeSocket) -> Option<Vec<(Vec<u8>, usize)>> {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut one, mut two) = ([0; 2000], [0; 2000]);
        let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
        let mut lengths = [(0, 0); 2];
        match socket.poll_recv(&mut cx, &mut buffers, &mut lengths) {
            Poll::Ready(Ok(count)) => Some(
                (0..count)
                    .map(|at| (buffers[at][..lengths[at].0].to_vec(), lengths[at].1))
                    .collect(),
            ),
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => None,
        }
    }

    #[test]
    fn runs_arrive_in_order_with_their_lengths() {
        let (one, other) = BridgeSocket::pair();
        assert!(received(&other).is_none());
        one.try_send(&[1; 250], 100).unwrap();
        one.try_send(&[2; 10], 10).unwrap();
        assert_eq!(received(&other).unwrap(), [(vec![1; 250], 100), (vec![2; 10], 10)]);
        other.try_send(&[3], 1).unwrap();
        assert_eq!(received(&one).unwrap(), [(vec![3], 1)]);
    }

    #[test]
    fn a_full_queue_blocks_until_it_is_read() {
        let (one, other) = BridgeSocket::pair();
        let mut sent = 0;
        while one.try_send(&[0; 1000], 1000).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, MOST_QUEUED.div_ceil(1000));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(one.poll_writable(&mut cx).is_pending());
        let mut runs = Vec::new();
        other.drain(&mut runs, usize::MAX, Waker::noop());
        assert_eq!(runs.len(), sent);
        assert!(one.poll_writable(&mut cx).is_ready());
    }

    #[test]
    fn dropping_one_end_closes_the_other_after_what_waits() {
        let (one, other) = BridgeSocket::pair();
        one.try_send(&[5; 3], 3).unwrap();
        drop(one);
        assert_eq!(received(&other).unwrap(), [(vec![5; 3], 3)]);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(other.poll_recv(&mut cx, &mut [], &mut []), Poll::Ready(Err(_))));
        assert!(other.try_send(&[1], 1).is_err());
        assert!(other.is_closed());
    }

    #[test]
    fn a_run_takes_equal_datagrams_and_one_shorter_at_its_end() {
        let mut run = DatagramRun::default();
        assert!(run.push(&[1; 100]) && run.push(&[2; 100]));
        assert!(!run.push(&[3; 101]));
        assert!(run.push(&[4; 50]));
        assert!(!run.push(&[5; 50]));
        assert_eq!(run.datagrams().map(<[u8]>::len).collect::<Vec<_>>(), [100, 100, 50]);
    }
}
