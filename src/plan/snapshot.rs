//! The difference of two states of a directory.

/// A file's name. Boxed: a sweep keeps many.
pub(crate) type Name = Box<[u8]>;

/// A file's state as one number: a digest of device, inode, size, mtime and ctime. States are compared for *inequality*:
/// a clock that steps back hides nothing.
pub(crate) type State = u64;

/// Mixes the fields of a state into 64 bits. Not a defence against somebody who can forge inode numbers.
pub(crate) fn digest(fields: &[u64]) -> State {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for field in fields {
        hash = (hash ^ field).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    hash ^ hash >> 32
}

/// Calls `changed` with each name that is in only one of two sorted lists, or in both with different states.
pub(crate) fn difference<T: PartialEq>(
    old: &[(Name, T)],
    new: &[(Name, T)],
    mut changed: impl FnMut(&Name, Option<&T>, Option<&T>),
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
