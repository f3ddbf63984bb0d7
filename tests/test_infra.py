"""The bucket's template and lifecycle rule: valid, in agreement, and with the least rights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.s3_servers import S3Server
from tracefleet.store import open_store

INFRA = Path(__file__).parent.parent / "infra"
TEMPLATE = (INFRA / "bucket.yaml").read_text("utf-8")
LIFECYCLE = json.loads((INFRA / "lifecycle.json").read_text("utf-8"))
BUCKET_ARN = "arn:aws:s3:::models"
KEY_ARN = "arn:aws:kms:us-east-1:123456789012:key/0f"


def findings(template: str) -> list[str]:
    """The errors and warnings that cfn-lint finds; offline."""
    from cfnlint.api import lint

    return [str(match) for match in lint(template)]


def test_cfn_lint_finds_nothing():
    assert findings(TEMPLATE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "finding"),
    [
        ("ObjectOwnership: BucketOwnerEnforced", "ObjectOwnership: Nobody", "E3030"),
        ("BlockPublicAcls:", "BlockPublicAcl:", "E3002"),
        ("!GetAtt Bucket.Arn", "!GetAtt Bukket.Arn", "E1010"),
        ("Effect: Deny", "Effect: Refuse", "E3512"),
    ],
)
def test_cfn_lint_finds_what_is_broken(right: str, wrong: str, finding: str):
    assert right in TEMPLATE
    assert finding in "\n".join(findings(TEMPLATE.replace(right, wrong)))


def test_the_template_has_no_aliases():
    # CloudFormation reads YAML without them, and cfn-lint doesn't tell (CloudFormation user guide,
    # "CloudFormation template format").
    assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(TEMPLATE))


class Template:
    """The template with its parameters filled in: as much of CloudFormation as it uses."""

    def __init__(self, **parameters: str) -> None:
        self._raw = yaml.load(TEMPLATE, _Loader)
        declared = self._raw["Parameters"].items()
        self.values = {name: given["Default"] for name, given in declared} | parameters
        self.values |= {"AWS::Region": "us-east-1", "AWS::URLSuffix": "amazonaws.com"}
        self.values |= {"Bucket": "models", "Bucket.Arn": BUCKET_ARN, "AWS::NoValue": None}
        self.outputs = {k: self._fill(v["Value"]) for k, v in self._raw["Outputs"].items()}

    def properties(self, resource: str) -> dict[str, Any]:
        properties: dict[str, Any] = self._fill(self._raw["Resources"][resource]["Properties"])
        return properties

    def statements(self, resource: str) -> list[dict[str, Any]]:
        statements: list[dict[str, Any]] = self.properties(resource)["PolicyDocument"]["Statement"]
        return statements

    def allows(self, role: str, action: str, resource: str, *, new: bool = True) -> bool:
        """Whether a role may do something to a key, ``""`` for the bucket, or the KMS key.

        With ``new`` a write carries If-None-Match, as what creates a file once does.
        """
        if not resource.startswith("arn:"):
            resource = f"{BUCKET_ARN}/{resource}".rstrip("/")
        effects = [
            one["Effect"]
            for one in self.statements(f"{role}Policy")
            if action in as_list(one["Action"])
            and any(fnmatchcase(resource, pattern) for pattern in as_list(one["Resource"]))
            and not (new and "Null" in one.get("Condition", {}))
        ]
        return "Allow" in effects and "Deny" not in effects

    def _fill(self, node: Any) -> Any:
        if isinstance(node, _Call):
            return self._call(node.name, node.argument)
        if isinstance(node, dict):
            filled = {key: self._fill(value) for key, value in node.items()}
            return {key: value for key, value in filled.items() if value is not None}
        if isinstance(node, list):
            return [value for value in map(self._fill, node) if value is not None]
        return node

    def _call(self, name: str, argument: Any) -> Any:
        if name in ("!Ref", "!GetAtt"):
            return self.values.get(argument, argument)
        if name == "!Sub":
            return re.sub(r"\$\{(.+?)\}", lambda match: self.values[match[1]], argument)
        if name == "!Equals":
            return self._fill(argument[0]) == argument[1]
        if name == "!Not":
            return not self._fill(argument[0])
        assert name == "!If"
        return self._fill(argument[1 if self._fill(self._raw["Conditions"][argument[0]]) else 2])


@dataclass(frozen=True)
class _Call:
    name: str
    argument: Any


class _Loader(yaml.SafeLoader):
    """Keeps CloudFormation's functions for later."""


def _construct(loader: yaml.SafeLoader, node: yaml.Node) -> _Call:
    if isinstance(node, yaml.SequenceNode):
        return _Call(node.tag, loader.construct_sequence(node, deep=True))
    assert isinstance(node, yaml.ScalarNode)
    return _Call(node.tag, loader.construct_scalar(node))


_Loader.add_constructor(None, _construct)


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


PLAIN = Template()
FULL = Template(Prefix="team/fleet/", KmsKeyArn=KEY_ARN, Versioning="true")


def rules(template: Template) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = template.properties("Bucket")["LifecycleConfiguration"]["Rules"]
    return found


def test_lifecycle_json_is_the_templates_rule(moto_server: S3Server):
    s3 = moto_server.client()
    s3.put_bucket_lifecycle_configuration(
        Bucket=moto_server.bucket, LifecycleConfiguration=LIFECYCLE
    )
    answer = s3.get_bucket_lifecycle_configuration(Bucket=moto_server.bucket)
    s3.delete_bucket_lifecycle(Bucket=moto_server.bucket)
    [rule] = answer["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    [of_template] = rules(PLAIN)
    assert of_template == {
        "Id": rule["ID"],
        "Status": rule["Status"],
        "AbortIncompleteMultipartUpload": rule["AbortIncompleteMultipartUpload"],
    }


def test_the_bucket_is_private_and_encrypted():
    for template, key in ((PLAIN, None), (FULL, KEY_ARN)):
        bucket = template.properties("Bucket")
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert bucket["OwnershipControls"] == {
            "Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]
        }
        [rule] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        by_default = rule["ServerSideEncryptionByDefault"]
        assert (by_default["SSEAlgorithm"], by_default.get("KMSMasterKeyID")) == ("aws:kms", key)


def test_the_url_is_one_that_a_store_takes():
    assert open_store(PLAIN.outputs["StoreUrl"]).url == "s3://models"
    assert open_store(FULL.outputs["StoreUrl"]).url == "s3://models/team/fleet"


def test_versions_are_kept_only_when_asked():
    statuses = [t.properties("Bucket")["VersioningConfiguration"]["Status"] for t in (PLAIN, FULL)]
    assert statuses == ["Suspended", "Enabled"]
    assert [rule["Id"] for rule in rules(FULL)] == [
        "abort-unfinished-uploads",
        "forget-removed-versions",
    ]


def test_the_bucket_policy_wants_tls_and_conditional_writes():
    tls, conditional = FULL.statements("BucketPolicy")
    assert (tls["Effect"], tls["Principal"], tls["Action"]) == ("Deny", "*", "s3:*")
    assert tls["Resource"] == [BUCKET_ARN, f"{BUCKET_ARN}/*"]
    assert tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert (conditional["Effect"], conditional["Principal"]) == ("Deny", "*")
    assert conditional["Action"] == "s3:PutObject"
    assert conditional["Condition"] == {
        "Null": {"s3:if-none-match": "true"},
        "Bool": {"s3:ObjectCreationOperation": "true"},
    }
    for key in (
        "conversions/hf--a/0f/manifest.json",
        "conversions/hf--a/0f/model/1/model.pt",
        "channels/hf--a/v/latest/0000000001.json",
    ):
        assert any(
            fnmatchcase(f"{BUCKET_ARN}/team/fleet/{key}", pattern)
            for pattern in conditional["Resource"]
        )


ROLES = ("Reader", "Publisher", "Promoter", "Collector")
# Who may do what to which key below the prefix.
RIGHTS = [
    ("s3:ListBucket", "", "Reader Publisher Promoter Collector"),
    ("s3:GetObject", "team/fleet/channels/x", "Reader Publisher Promoter Collector"),
    ("s3:GetObject", "team/other/x", ""),
    ("s3:PutObject", "team/fleet/conversions/x", "Publisher"),
    ("s3:PutObject", "team/fleet/channels/x", "Publisher Promoter"),
    ("s3:PutObject", "team/fleet/channels/a/v/latest/1.json", "Publisher Promoter"),
    ("s3:PutObject", "team/fleet/channels/a/v/production/1.json", "Promoter"),
    ("s3:PutObject", "team/fleet/publishing/x", "Publisher Promoter"),
    ("s3:PutObject", "team/fleet/collecting/x", "Publisher Collector"),
    ("s3:PutObject", "team/fleet/probe/x", "Publisher Promoter Collector"),
    ("s3:PutObject", "team/other/x", ""),
    ("s3:AbortMultipartUpload", "team/fleet/conversions/x", "Publisher Collector"),
    ("s3:ListMultipartUploadParts", "team/fleet/conversions/x", "Publisher"),
    ("s3:ListBucketMultipartUploads", "", "Publisher Collector"),
    ("s3:DeleteObject", "team/fleet/publishing/x", "Publisher Promoter Collector"),
    ("s3:DeleteObject", "team/fleet/collecting/x", "Collector"),
    ("s3:DeleteObject", "team/fleet/conversions/x", "Collector"),
    ("s3:PutObject", "team/fleet/refusals/x", "Publisher"),
    ("s3:DeleteObject", "team/fleet/refusals/x", "Collector"),
    ("s3:DeleteObject", "team/fleet/channels/x", ""),
    ("s3:DeleteObject", "team/fleet/attestations/x", ""),
    ("s3:DeleteObject", "team/fleet/reports/x", "Collector"),
    ("s3:DeleteObjectVersion", "team/fleet/conversions/x", ""),
    ("s3:PutBucketPolicy", "", ""),
    ("kms:Decrypt", KEY_ARN, "Reader Publisher Promoter Collector"),
    ("kms:GenerateDataKey", KEY_ARN, "Publisher Promoter Collector"),
]


@pytest.mark.parametrize(("action", "key", "roles"), RIGHTS)
def test_each_role_has_the_least_rights(action: str, key: str, roles: str):
    allowed = [role for role in ROLES if FULL.allows(role, action, key)]
    assert allowed == roles.split()


def test_a_publisher_guards_a_channel_and_lifts_no_guard():
    guard = ("s3:PutObject", "team/fleet/guarded/production.json")
    assert FULL.allows("Publisher", *guard)
    assert not FULL.allows("Publisher", *guard, new=False)
    assert not any(FULL.allows(role, *guard) for role in ("Reader", "Promoter", "Collector"))
    other = Template(GuardedChannel="stable")
    entry = "channels/hf--a/v/{}/0000000002.json"
    assert other.allows("Publisher", "s3:PutObject", entry.format("production"))
    assert not other.allows("Publisher", "s3:PutObject", entry.format("stable"))


def test_without_a_key_nobody_has_rights_to_one():
    for role in ROLES:
        actions = [
            action for one in PLAIN.statements(f"{role}Policy") for action in as_list(one["Action"])
        ]
        assert actions
        assert not any(action.startswith("kms:") for action in actions)
