//! The programs of `examples/backends`, made and called as their READMEs say, against a gateway.
//!
//! A language whose tools aren't on the machine is skipped, with a line that says so; where CI=true it fails.
#![allow(missing_docs, unreachable_pub)]

mod common;

#[path = "backends/example.rs"]
mod example;
#[path = "backends/ground.rs"]
mod ground;
#[path = "backends/presence.rs"]
mod presence;
#[path = "backends/pushes.rs"]
mod pushes;
#[path = "backends/refusing.rs"]
mod refusing;

use std::{fs, path::Path};

use example::{Example, REPOSITORY, Tool, block};
use ground::Ground;

const GO: Tool = Tool { name: "Go 1.24 or newer", line: "go version && go list -m" };
const PROTOC: Tool = Tool {
    name: "protoc with the types that come with it",
    line: "protoc --version && protoc -I ../../../proto -o /dev/null plex/v1/gateway.proto",
};
const PYTHON: Tool = Tool {
    name: "Python 3.10 or newer with venv",
    line: "python3 -c 'import ensurepip, sys, venv; print(sys.version); assert sys.version_info >= (3, 10)'",
};
const NODE: Tool = Tool {
    name: "Node 18.18 or newer",
    line: "node -p 'process.version' && \
           node -p 'const [major, minor] = process.versions.node.split(`.`); \
                    process.exitCode = major > 18 || (major == 18 && minor >= 18) ? 0 : 1'",
};
const NPM: Tool = Tool { name: "npm", line: "npm --version" };
const JAVA: Tool =
    Tool { name: "a JDK of Java 17 or newer", line: "javac -version 2>&1 | awk '{ print; exit $2 + 0 < 17 }'" };
const MAVEN: Tool = Tool { name: "Maven", line: "mvn --version" };

#[tokio::test]
async fn a_backend_in_go_does_what_its_readme_says() {
    scenario("go", &[GO, PROTOC]).await;
}

#[tokio::test]
async fn a_backend_in_python_does_what_its_readme_says() {
    scenario("python", &[PYTHON]).await;
}

#[tokio::test]
async fn a_backend_in_node_does_what_its_readme_says() {
    scenario("node", &[NODE, NPM]).await;
}

#[tokio::test]
async fn a_backend_in_java_does_what_its_readme_says() {
    scenario("java", &[JAVA, MAVEN]).await;
}

#[test]
fn every_example_has_the_service_config_of_the_readme() {
    let readme = fs::read_to_string(Path::new(REPOSITORY).join("README.md")).unwrap();
    let shown = block(&readme, "json", "methodConfig");
    for file in ["go", "python", "node", "java/src/main/resources"] {
        let path = Path::new(REPOSITORY).join("examples/backends").join(file).join("service_config.json");
        assert_eq!(fs::read_to_string(&path).unwrap(), shown, "{path:?}");
    }
}

async fn scenario(language: &str, tools: &[Tool]) {
    let Some(example) = Example::of(language, tools) else { return };
    let ground = Ground::new(example).await;
    ground.what_getting_started_shows().await;
    ground.what_its_readme_shows().await;
    ground.single_pushes().await;
    ground.many_pushes().await;
    ground.a_stream_of_pushes_and_a_slow_device().await;
    ground.what_cannot_be_asked().await;
    ground.retries_and_deadlines().await;
    ground.a_broken_connection_is_resumed().await;
    let ground = ground.restarts_and_a_drain().await;
    ground.ten_thousand_devices_and_a_restart().await;
}
