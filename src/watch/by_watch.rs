//! Maps from watch descriptors. The kernel counts them up, so those of one tree lie close together: pages of them take a
//! quarter of the memory of a hash table, and a page goes when its last watch does.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Keyed by watches and nodes: no stranger chooses such numbers, and a multiplication mixes them enough.
pub(crate) type ByWatch<T> = HashMap<i32, T, BuildHasherDefault<Mix>>;

#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_i32((*byte).into()));
    }

    fn write_i32(&mut self, wd: i32) {
        self.0 = (self.0 ^ wd as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const PAGE: usize = 64;

/// From watch descriptor to a number.
#[derive(Default)]
pub(crate) struct Pages(ByWatch<Box<[u32; PAGE + 1]>>);

/// An empty place.
const EMPTY: u32 = u32::MAX;

fn place(wd: i32) -> (i32, usize) {
    (wd.div_euclid(PAGE as i32), wd.rem_euclid(PAGE as i32) as usize)
}

impl Pages {
    pub(crate) fn get(&self, wd: i32) -> Option<u32> {
        let (page, at) = place(wd);
        self.0.get(&page).map(|page| page[at]).filter(|value| *value != EMPTY)
    }

    /// `value` is less than the greatest number of its type.
    pub(crate) fn insert(&mut self, wd: i32, value: u32) {
        let (page, at) = place(wd);
        // The last place counts those in use.
        let page = self.0.entry(page).or_insert_with(|| {
            let mut page = Box::new([EMPTY; PAGE + 1]);
            page[PAGE] = 0;
            page
        });
        page[PAGE] += u32::from(page[at] == EMPTY);
        page[at] = value;
    }

    pub(crate) fn remove(&mut self, wd: i32) {
        let (number, at) = place(wd);
        let Some(page) = self.0.get_mut(&number) else { return };
        page[PAGE] -= u32::from(page[at] != EMPTY);
        page[at] = EMPTY;
        if page[PAGE] == 0 {
            self.0.remove(&number);
        }
    }

    /// Every watch descriptor in it.
    pub(crate) fn keys(&self) -> impl Iterator<Item = i32> + '_ {
        self.0.iter().flat_map(|(number, page)| {
            let base = number * PAGE as i32;
            let used: Vec<usize> = (0..PAGE).filter(|at| page[*at] != EMPTY).collect();
            used.into_iter().map(move |at| base + at as i32)
        })
    }
}

#[cfg(test)]
#[test]
fn pages_come_and_go() {
    let mut pages = Pages::default();
    for wd in [1, 63, 64, 1000, i32::MAX] {
        pages.insert(wd, wd as u32 / 2);
        pages.insert(wd, wd as u32 / 3);
    }
    let mut keys: Vec<i32> = pages.keys().collect();
    keys.sort_unstable();
    assert_eq!(keys, [1, 63, 64, 1000, i32::MAX]);
    assert_eq!((pages.get(1000), pages.get(1001), pages.get(-1)), (Some(333), None, None));
    for wd in [1, 1, 63, 64, 1000, 5, i32::MAX] {
        pages.remove(wd);
    }
    assert!(pages.0.is_empty());
}
