use super::*;

#[test]
fn the_definitions_hold_together() {
    command().debug_assert();
}

#[test]
fn every_command_has_an_example() {
    for sub in command().get_subcommands() {
        // Those of mount and unmount are theirs to give.
        if !matches!(sub.get_name(), "mount" | "unmount") {
            let example = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            let begins = format!("Example: strata {} ", sub.get_name());
            assert!(example.starts_with(&begins), "{}: {example}", sub.get_name());
        }
    }
}

#[test]
fn examples_in_the_help_parse() {
    for sub in command().get_subcommands() {
        let Some(example) = sub.get_after_help().map(ToString::to_string) else { continue };
        let words = example.trim_start_matches("Example: ").split_whitespace();
        let words: Vec<&str> = words.take_while(|word| !matches!(*word, "|" | ">")).collect();
        let parsed = Cli::try_parse_from(&words);
        assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
    }
}

#[test]
fn sizes_have_binary_units() {
    assert_eq!(parse_size("4096"), Ok(4096));
    assert_eq!(parse_size("256M"), Ok(256 << 20));
    assert_eq!(parse_size("1GiB"), Ok(1 << 30));
    assert_eq!(parse_size("2t"), Ok(2 << 40));
    assert_eq!(parse_size("99999999999T"), Err("too large".into()));
    for wrong in ["", "M", "1.5G", "-1", "1X", "1 G"] {
        assert!(parse_size(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn options_reach_the_opener() {
    let line = ["strata", "ls", "--allow-path", "/a", "--allow-path=/b", "--format=raw", "x"];
    let Command::Ls(_) = Cli::try_parse_from(line).unwrap().command else { panic!("not ls") };
    let line = ["strata", "info", "--no-backing", "--format=qcow2", "x"];
    let Command::Info(args) = Cli::try_parse_from(line).unwrap().command else {
        panic!("not info")
    };
    let opener = args.open().opener();
    assert!(opener.policy.no_backing);
    assert_eq!(opener.format, Some(Format::Qcow2));
    assert_eq!(opener.policy.max_depth, 512);
    assert!(
        Cli::try_parse_from(["strata", "info", "--no-backing", "--allow-path=/a", "x"]).is_err()
    );
}
