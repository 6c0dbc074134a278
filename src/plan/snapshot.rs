//! The difference of two states of a directory.

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

/// The files of a directory, in the order of their names. All names are in one buffer, each with a NUL after it, for a
/// sweep keeps many.
#[derive(Default)]
pub(crate) struct Files {
    names: Vec<u8>,
    states: Vec<State>,
}

impl Files {
    /// The name comes after those that are there, and contains no NUL.
    pub(crate) fn push(&mut self, name: &[u8], state: State) {
        self.names.extend_from_slice(name);
        self.names.push(0);
        self.states.push(state);
    }

    /// Gives back the memory that is not used.
    pub(crate) fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.states.shrink_to_fit();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], State)> {
        names(&self.names).zip(self.states.iter().copied())
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&[u8], &mut State)> {
        names(&self.names).zip(&mut self.states)
    }
}

/// The names in a buffer, each of which has a NUL after it.
pub(crate) fn names(buffer: &[u8]) -> impl Iterator<Item = &[u8]> {
    buffer.split_inclusive(|byte| *byte == 0).map(|name| &name[..name.len() - 1])
}

/// Calls `changed` with each name that is in only one of the two, or in both with different states.
pub(crate) fn difference(old: &Files, new: &Files, mut changed: impl FnMut(&[u8], Option<State>, Option<State>)) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some(a), Some(b)) => a.0.cmp(b.0),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return,
        };
        let (was, is) = (old.next_if(|_| order.is_le()), new.next_if(|_| order.is_ge()));
        let states = (was.map(|(_, state)| state), is.map(|(_, state)| state));
        if let Some((name, _)) = was.or(is).filter(|_| states.0 != states.1) {
            changed(name, states.0, states.1);
        }
    }
}
