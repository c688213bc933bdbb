//! `mosaic-init`: the launcher and PID 1 of a sandbox. See `mosaic::inside`.

fn main() {
    std::process::exit(mosaic::inside::run());
}
