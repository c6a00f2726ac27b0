use super::*;
use crate::block::MemorySource;

#[test]
fn signatures() {
    let seems = |head: &[u8], at: usize| {
        let mut bytes = vec![0; 4096];
        bytes[at..at + head.len()].copy_from_slice(head);
        examine(&MemorySource::new(bytes)).unwrap()
    };
    assert_eq!(seems(b"QFI\xfb", 0), Probed::Known(Format::Qcow2));
    assert_eq!(seems(b"", 0), Probed::Known(Format::Raw));
    assert_eq!(seems(b"BZh is a word", 0), Probed::Known(Format::Raw));
    let foreign: [(&[u8], usize, &str); 10] = [
        (b"KDMV", 0, "VMDK"),
        (b"# Disk DescriptorFile\nversion=1", 0, "VMDK"),
        (b"vhdxfile", 0, "VHDX"),
        (b"conectix", 0, "VHD"),
        (b"conectix", 4096 - 512, "VHD"),
        (&[0x7f, 0x10, 0xda, 0xbe], 0x40, "VDI"),
        (b"QED\0", 0, "QED"),
        (b"WithoutFreeSpace", 0, "Parallels"),
        (&[0x1f, 0x8b, 8], 0, "gzip"),
        (b"BZh91AY&SY", 0, "bzip2"),
    ];
    for (head, at, name) in foreign {
        let Probed::Foreign(seems) = seems(head, at) else { panic!("{name}") };
        assert!(seems.contains(name), "{seems}");
    }
}

#[test]
fn a_foreign_format_is_refused_by_name() {
    let error = probe(&MemorySource::new(b"KDMV".to_vec())).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(error.to_string(), "VMDK (VMware disk) (not supported)");
    assert!(error.hint().unwrap().contains("--format raw"));
    assert_eq!(probe(&MemorySource::new(Vec::new())).unwrap(), Format::Raw);
}

#[test]
fn formats_have_names() {
    for format in [Format::Raw, Format::Qcow2] {
        assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
    }
    assert_eq!("vmdk".parse::<Format>().unwrap_err().kind(), Kind::Unsupported);
}
