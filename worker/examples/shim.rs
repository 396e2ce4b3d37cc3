//! The shim alone, for tests of the runtime: in the product it is `orch shim`.

fn main() {
    std::process::exit(orch_worker::shim::main());
}
