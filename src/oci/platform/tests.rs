use super::*;
use crate::oci::Digest;

fn image(platform: Option<&str>) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: Digest::of(crate::oci::Algorithm::Sha256, platform.unwrap_or("none").as_bytes()),
        size: 0,
        platform: platform.map(|text| text.parse().unwrap()),
        annotations: Default::default(),
    }
}

#[track_caller]
fn chosen(wanted: &str, there: &[&str]) -> String {
    let images: Vec<_> = there.iter().map(|platform| image(Some(platform))).collect();
    match choose(Some(&wanted.parse().unwrap()), &images) {
        Ok(image) => image.platform.as_ref().unwrap().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_best_variant_that_runs_is_chosen() {
    // containerd's `platforms.Only`, whatever the order of the index.
    let arms = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64"];
    assert_eq!(chosen("linux/arm", &arms), "linux/arm/v7");
    assert_eq!(chosen("linux/arm/v6", &arms), "linux/arm/v6");
    assert_eq!(chosen("linux/arm/v8", &arms), "linux/arm/v7");
    assert_eq!(chosen("linux/arm64", &arms), "linux/arm64");
    assert_eq!(chosen("linux/aarch64", &arms), "linux/arm64");
    assert_eq!(chosen("linux/arm64/v8", &["linux/arm64/v8"]), "linux/arm64/v8");
    assert_eq!(chosen("linux/arm64", &["linux/arm64/v8"]), "linux/arm64/v8");
    assert_eq!(chosen("linux/arm64", &arms[..3]), "linux/arm/v7");
    assert_eq!(chosen("linux/x86_64", &arms), "linux/amd64");
    let levels = ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3"];
    assert_eq!(chosen("linux/amd64", &levels), "linux/amd64");
    assert_eq!(chosen("linux/amd64/v3", &levels), "linux/amd64/v3");
    assert_eq!(chosen("linux/amd64/v4", &levels[..2]), "linux/amd64/v2");
    assert_eq!(chosen("linux/amd64", &["linux/386"]), "linux/386");
}

#[test]
fn what_does_not_run_is_listed() {
    let told = "no image for linux/arm/v5 in it; there is linux/arm/v7, linux/amd64";
    assert_eq!(chosen("linux/arm/v5", &["linux/arm/v7", "linux/amd64"]), told);
    let told = "no image for linux/386 in it; there is linux/amd64";
    assert_eq!(chosen("linux/386", &["linux/amd64"]), told);
    assert_eq!(
        chosen("windows/amd64", &["linux/amd64"]),
        "no image for windows/amd64 in it; there is linux/amd64"
    );
}

#[test]
fn the_only_one_is_it_unless_another_is_asked_for() {
    let one = [image(Some("linux/s390x"))];
    assert_eq!(choose(None, &one).unwrap(), &one[0]);
    let unsaid = [image(None)];
    assert_eq!(choose(Some(&Platform::host()), &unsaid).unwrap(), &unsaid[0]);
    assert_eq!(choose(None, &[]).unwrap_err().cause(), Some(&Cause::Empty));
}

#[test]
fn attestations_are_no_images() {
    let host = Platform::host().to_string();
    let images = [image(Some("unknown/unknown")), image(Some(&host))];
    assert_eq!(choose(None, &images).unwrap(), &images[1]);
    let mut said = image(None);
    said.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
    assert_eq!(choose(None, &[said]).unwrap_err().cause(), Some(&Cause::Empty));
}

#[test]
fn a_platform_has_two_or_three_words() {
    for text in ["", "linux", "linux/", "/amd64", "linux/a/b/c", "linux/a b"] {
        assert_eq!(text.parse::<Platform>().unwrap_err().kind(), Kind::Usage, "{text}");
    }
    assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
}
