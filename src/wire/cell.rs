//! The outermost view of a cell: its circuit id and its first sequence number.
//!
//! In: the 1408 bytes of a cell. Out: the fields that stand in clear. Called by: forward, circuit.
//!
//! ```text
//! forward   0 CID 16 | 16 slot[0] = seq 4, tag 16 | 36 slot[1..=3] | 96 body
//! backward  0 CID 16 | 16 strip = 4 x seq | 32 link tag | 48 exit tag | 64 reserved | 96 body
//! ```

use crate::model::{CELL_LEN, CID_LEN, Cid, SEQ_LEN};

/// The circuit id of a cell.
pub fn cid_of(cell: &[u8; CELL_LEN]) -> Cid {
    let mut bytes = [0u8; CID_LEN];
    bytes.copy_from_slice(&cell[..CID_LEN]);
    Cid::from_bytes(bytes)
}

/// Writes the circuit id of the next link.
pub fn set_cid(cell: &mut [u8; CELL_LEN], cid: Cid) {
    cell[..CID_LEN].copy_from_slice(cid.as_bytes());
}

/// The sequence number that the receiving hop reads, in both directions at the same place.
pub fn first_seq(cell: &[u8; CELL_LEN]) -> u32 {
    let mut bytes = [0u8; SEQ_LEN];
    bytes.copy_from_slice(&cell[CID_LEN..CID_LEN + SEQ_LEN]);
    u32::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_says() {
        let mut cell = [0u8; CELL_LEN];
        for (index, byte) in cell.iter_mut().enumerate() {
            *byte = index as u8;
        }
        assert_eq!(
            cid_of(&cell).as_bytes(),
            &core::array::from_fn::<u8, 16, _>(|index| index as u8)
        );
        assert_eq!(first_seq(&cell), 0x1011_1213);
        let cid = Cid::from_bytes([9; 16]);
        set_cid(&mut cell, cid);
        assert_eq!(cid_of(&cell), cid);
        assert_eq!(cell[16], 16);
    }
}
