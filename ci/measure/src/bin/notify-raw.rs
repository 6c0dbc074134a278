//! notify without a debouncer: one line an event, as `refork watch --json` prints a batch. Opening is not a change.

use notify::{Event, EventKind, RecursiveMode, Watcher};

fn main() {
    let root = std::env::args_os().nth(1).expect("notify-raw ROOT");
    let mut watcher = notify::recommended_watcher(|event: notify::Result<Event>| {
        let event = event.expect("an event");
        if !matches!(event.kind, EventKind::Access(notify::event::AccessKind::Open(_))) {
            measure::print_batch(event.paths.iter());
        }
    })
    .expect("a watcher");
    watcher.watch(root.as_ref(), RecursiveMode::Recursive).expect("watching");
    measure::print_ready();
    loop {
        std::thread::park();
    }
}
