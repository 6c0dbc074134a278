//! Any bytes, read as the kernel's records: no panic, no loop, and nothing that was not in the buffer.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod dir {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Kind {
        Dir,
        Link,
        Other,
        Unknown,
    }
}
#[path = "../../../src/watch/records.rs"]
#[allow(dead_code)]
mod records;

fuzz_target!(|data: &[u8]| {
    let mut count = 0;
    for event in records::Events(data) {
        count += 16 + event.name.len();
        assert!(!event.name.contains(&0));
    }
    assert!(count <= data.len());
    let mut count = 0;
    for (name, _) in records::Entries(data) {
        count += 19 + name.len();
        assert!(name != b"." && name != b"..");
    }
    assert!(count <= data.len());
});
