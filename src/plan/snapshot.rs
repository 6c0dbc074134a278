//! The difference of two states of a directory.

use std::ffi::OsString;

/// A file's state as one number: a digest of device, inode, size, mtime and ctime. States are compared for *inequality*:
/// a clock that steps back hides nothing.
pub(crate) type State = u64;

/// Mixes the fields of a state into 64 bits (FNV-1a over their bytes, then a final avalanche). Not a defence against
/// somebody who can forge inode numbers.
pub(crate) fn digest(fields: &[u64]) -> State {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in fields.iter().flat_map(|field| field.to_ne_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Calls `changed` with each name that is in only one of two sorted lists, or in both with different states.
pub(crate) fn difference<T: PartialEq>(
    old: &[(OsString, T)],
    new: &[(OsString, T)],
    mut changed: impl FnMut(&OsString, Option<&T>, Option<&T>),
) {
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let order = match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) => a.0.cmp(&b.0),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, _) => std::cmp::Ordering::Greater,
        };
        match order {
            std::cmp::Ordering::Less => changed(&old[i].0, Some(&old[i].1), None),
            std::cmp::Ordering::Greater => changed(&new[j].0, None, Some(&new[j].1)),
            std::cmp::Ordering::Equal if old[i].1 != new[j].1 => changed(&old[i].0, Some(&old[i].1), Some(&new[j].1)),
            std::cmp::Ordering::Equal => {}
        }
        i += usize::from(order.is_le());
        j += usize::from(order.is_ge());
    }
}
