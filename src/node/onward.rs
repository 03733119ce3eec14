//! Cells of one read on their way to the next neighbours, gathered so that one call sends many.
//!
//! In: runs of cells, from where they lie. Out: trains, each neighbour's in the order they came.
//! Called by: the node's turn.
//!
//! What a read brings mostly goes to two neighbours, in small messages: an answer's cells lie alone
//! among those of a download. Sent one by one, each costs a call here and a wake-up there.

use std::net::SocketAddr;

use super::link::Link;
use crate::{capture::udp::PIECES, model::CELL_LEN};

/// Neighbours that are gathered for at a time.
const NEIGHBOURS: usize = 4;

/// Trains that are not full yet.
#[derive(Default)]
pub(super) struct Onward<'a> {
    trains: [Option<Train<'a>>; NEIGHBOURS],
    /// The train that makes room for a further neighbour.
    next_out: usize,
}

/// Cells for one neighbour, all marked or none.
struct Train<'a> {
    to: SocketAddr,
    marked: bool,
    pieces: [&'a [u8]; PIECES],
    count: usize,
    bytes: usize,
}

impl<'a> Onward<'a> {
    /// Takes cells for `to`; what fills a train is sent.
    pub(super) fn push(
        &mut self,
        link: &mut Link,
        to: SocketAddr,
        marked: bool,
        mut cells: &'a [u8],
    ) {
        let most = link.socket.most_segments(CELL_LEN) * CELL_LEN;
        let train = self.train(link, to, marked);
        while !cells.is_empty() {
            let (piece, later) = cells.split_at(cells.len().min(most - train.bytes));
            train.pieces[train.count] = piece;
            train.count += 1;
            train.bytes += piece.len();
            if train.bytes >= most || train.count == PIECES {
                train.send(link);
            }
            cells = later;
        }
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, link: &mut Link) {
        self.trains.iter_mut().flatten().for_each(|train| train.send(link));
    }

    /// The train of a neighbour. One of other marks is sent first, so that order is kept.
    fn train(&mut self, link: &mut Link, to: SocketAddr, marked: bool) -> &mut Train<'a> {
        let is_its = |train: &Option<Train<'_>>| train.as_ref().is_none_or(|train| train.to == to);
        let index = self.trains.iter().position(is_its).unwrap_or_else(|| {
            self.next_out = (self.next_out + 1) % NEIGHBOURS;
            self.next_out
        });
        let train = self.trains[index].get_or_insert(Train {
            to,
            marked,
            pieces: [&[]; PIECES],
            count: 0,
            bytes: 0,
        });
        if train.to != to || train.marked != marked {
            train.send(link);
            (train.to, train.marked) = (to, marked);
        }
        train
    }
}

impl Train<'_> {
    fn send(&mut self, link: &mut Link) {
        if self.count > 0 {
            link.send_pieces(self.to, &self.pieces[..self.count], self.marked);
        }
        (self.count, self.bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        capture::udp::{RecvBatch, UdpSocket},
        forward::ecn,
    };

    /// Whatever is pushed arrives once where it should, in its order and with its mark.
    #[test]
    fn cells_arrive_in_order_at_more_neighbours_than_trains() {
        let bound = || UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut link = Link::new(bound());
        let neighbours: Vec<UdpSocket> = (0..NEIGHBOURS + 2).map(|_| bound()).collect();
        let cells: Vec<[u8; CELL_LEN]> = (0..240u8).map(|number| [number; CELL_LEN]).collect();
        let mut onward = Onward::default();
        let mut expected = vec![Vec::new(); neighbours.len()];
        for (number, run) in cells.chunks(5).enumerate() {
            // Every neighbour, and some twice in a row.
            let (to, marked) = (number / 2 % neighbours.len(), number % 7 == 0);
            expected[to].extend(run.iter().map(|cell| (cell[0], marked)));
            let addr = neighbours[to].local_addr();
            onward.push(&mut link, addr, marked, run.as_flattened());
        }
        onward.flush(&mut link);
        assert_eq!(link.traffic.cells_out, 240);
        for (socket, expected) in neighbours.iter().zip(expected) {
            let (mut got, mut batch) = (Vec::new(), RecvBatch::new());
            let deadline = Instant::now() + Duration::from_secs(5);
            while got.len() < expected.len() && Instant::now() < deadline {
                if socket.recv(&mut batch).is_ok() {
                    for mut message in batch.messages_mut() {
                        let marked = message.ecn == ecn::MET;
                        got.extend(message.datagrams().map(|cell| (cell[0], marked)));
                    }
                }
            }
            assert_eq!(got, expected);
        }
    }
}
