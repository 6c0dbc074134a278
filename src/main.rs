//! refork
fn main() {}
