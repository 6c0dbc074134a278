//! notify-debouncer-full at 50 ms: one line a batch, as `refork watch --json` prints it.

use notify_debouncer_full::{new_debouncer, notify::RecursiveMode, DebounceEventResult};
use std::time::Duration;

fn main() {
    let root = std::env::args_os().nth(1).expect("notify-debounced ROOT");
    let mut debouncer = new_debouncer(Duration::from_millis(50), None, |events: DebounceEventResult| {
        let events = events.expect("events");
        measure::print_batch(events.iter().flat_map(|event| &event.paths));
    })
    .expect("a debouncer");
    debouncer.watch(root, RecursiveMode::Recursive).expect("watching");
    measure::print_ready();
    loop {
        std::thread::park();
    }
}
