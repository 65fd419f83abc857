//! The power goes at any moment of a pull: afterwards nothing wrong is served.

use std::sync::Arc;

use crate::support::images::Image;
use crate::support::mirror::Mirror;
use crate::support::registry::Registry;
use crate::support::simulated_disk::{Loss, SimulatedDisk};

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_operation_of_a_pull_the_power_goes_at_what_is_served_afterwards_is_right() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[10, 40 * 1024, MIB + 50_000]);
    registry.put_image("library/app", "v1", &image);
    let mut losses = (0..).map(|n: u64| match n % 3 {
        0 => Loss::Everything,
        1 => Loss::Bytes,
        _ => Loss::Some(n),
    });
    for n in 0.. {
        let disk = Arc::new(SimulatedDisk::default());
        let mirror = Mirror::builder().upstream("docker.io", &registry).simulated_disk(&disk).start().await;
        disk.cut_at(n);
        mirror.pull_through_trouble("library/app", "v1", &image, || disk.is_cut()).await;
        mirror.idle().await;
        let spared = !disk.is_cut();
        disk.cut();
        let site = mirror.stop().await;
        site.lose_power(losses.next().unwrap());
        let mirror = site.start().await;
        mirror.pull("library/app", "v1", &image).await;
        mirror.idle().await;
        mirror.pull("library/app", "v1", &image).await;
        mirror.finish().await;
        if spared {
            assert!(n > 40 && disk.operations() > 40, "a pull takes more operations than {n}");
            break;
        }
    }
}
