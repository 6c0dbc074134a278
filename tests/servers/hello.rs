//! The README's first example: two workers, reload when this executable is rebuilt.
//!
//! Run it with `cargo run --example hello`, ask it with `curl http://127.0.0.1:8000/`, change `TEXT`, run
//! `cargo build --example hello` in another terminal, and ask again: new text, same pid.

use refork::{Master, Stream, Worker};
use std::io::{self, Read, Write};

const TEXT: &str = "hello";

fn main() -> refork::Result<()> {
    // An address as the first argument, for those whose port 8000 is taken.
    let addr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    Master::new().bind(addr).workers(2).watch_executable().run(serve)
}

fn serve(worker: &mut Worker) -> io::Result<()> {
    while let Some((mut stream, _peer)) = worker.accept()? {
        let _ = answer(&mut stream); // one client's trouble is not the worker's
    }
    Ok(()) // accept returned None: this worker is draining
}

fn answer(stream: &mut Stream) -> io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let master = std::os::unix::process::parent_id();
    write!(stream, "HTTP/1.0 200 OK\r\n\r\n{TEXT} from worker {}, master {master}\n", std::process::id())
}
