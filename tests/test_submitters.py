"""What workers may do on ECS and Kubernetes: what they call, and no more.

The calls are those of prefect-aws 0.7.12 and prefect-kubernetes 0.8.0. moto deploys the policy as
CloudFormation would and asks it at each call, for actions alone: it knows no resource of ECS. What
the deployed policy says of resources and conditions is judged here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import boto3
import botocore.exceptions
import httpx
import pytest
import yaml

from infra import job_templates
from tests.support.s3_servers import S3Server, moto
from tests.test_infra import as_list, findings

ECS = (job_templates.TEMPLATES / "rights-ecs.yaml").read_text("utf-8")
KUBERNETES = (job_templates.TEMPLATES / "rights-kubernetes.yaml").read_text("utf-8")
ACCOUNT = "123456789012"  # moto's
PUBLISHER = f"arn:aws:iam::{ACCOUNT}:role/publisher"
PROMOTER = f"arn:aws:iam::{ACCOUNT}:role/promoter"
EXECUTION = f"arn:aws:iam::{ACCOUNT}:role/execution"
NAMESPACE = "tracefleet"


# ECS


@dataclass(frozen=True)
class Cloud:
    """A moto server on which the stack is deployed.

    Attributes:
        policy: the submitter's policy as the stack made it.
        worker: makes one of a worker with that policy alone.
    """

    policy: dict[str, Any]
    worker: Callable[[str], Any]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with moto() as server:
        owner = _sign_in(server, "key", "secret")
        iam = owner("iam")
        arn = _deploy(owner("cloudformation"))
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        found = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]
        iam.create_user(UserName="worker")
        iam.put_user_policy(
            UserName="worker", PolicyName="p", PolicyDocument=_actions(found["Document"])
        )
        key = iam.create_access_key(UserName="worker")["AccessKey"]
        _prepare(owner)
        httpx.post(f"{server.url}/moto-api/reset-auth", content="0").raise_for_status()
        worker = _sign_in(server, key["AccessKeyId"], key["SecretAccessKey"])
        yield Cloud(found["Document"], worker)


def _sign_in(server: S3Server, key: str, secret: str) -> Callable[[str], Any]:
    def client(service: str) -> Any:
        return boto3.session.Session().client(
            service,
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    return client


def _deploy(cloudformation: Any) -> str:
    """Deploy the stack; return the ARN of the submitter's policy."""
    parameters = {
        "Cluster": "fleet",
        "TaskRoleArns": f"{PUBLISHER},{PROMOTER}",
        "ExecutionRoleArn": EXECUTION,
    }
    listed = [{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()]
    cloudformation.create_stack(StackName="rights", TemplateBody=ECS, Parameters=listed)
    [stack] = cloudformation.describe_stacks(StackName="rights")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
    return str(outputs["SubmitterPolicyArn"])


def _actions(policy: dict[str, Any]) -> str:
    """The policy's actions, for everything: moto asks ECS's and SQS's for ``*``."""
    actions = [action for one in policy["Statement"] for action in as_list(one["Action"])]
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _prepare(owner: Callable[[str], Any]) -> None:
    for cluster in ("fleet", "other"):
        owner("ecs").create_cluster(clusterName=cluster)
    owner("ecs").register_task_definition(**definition("payroll"))
    events = owner("sqs").get_queue_url(QueueName="prefect-ecs-tasks-events")["QueueUrl"]
    owner("sqs").send_message(QueueUrl=events, MessageBody="{}")


def definition(family: str) -> dict[str, Any]:
    """As much of a task definition of our template as moto takes."""
    task = {"name": "prefect", "image": "tracefleet", "memory": 512, "essential": True}
    return {"family": family, "containerDefinitions": [task]}


CLUSTER = "cluster/fleet"
ARN = f"arn:aws:{{}}:us-east-1:{ACCOUNT}:{{}}"
RUN = {"ecs:cluster": ARN.format("ecs", CLUSTER)}
PASS = {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
TASK = ARN.format("ecs", "task/fleet/0f")
DEFINITION = ARN.format("ecs", "task-definition/tracefleet-jit:3")
EVENTS = ARN.format("sqs", "prefect-ecs-tasks-events")
LOG = ARN.format("logs", "log-group:{}:log-stream:prefect-logs_jit/prefect/0f")
# What is asked for, with which context, and whether it may.
RIGHTS = [
    ("ecs:RegisterTaskDefinition", DEFINITION, {}, True),
    ("ecs:RegisterTaskDefinition", ARN.format("ecs", "task-definition/payroll:1"), {}, False),
    ("ecs:RunTask", DEFINITION, RUN, True),
    ("ecs:RunTask", DEFINITION, {"ecs:cluster": ARN.format("ecs", "cluster/other")}, False),
    ("ecs:RunTask", ARN.format("ecs", "task-definition/payroll:1"), RUN, False),
    ("ecs:TagResource", TASK, {"ecs:CreateAction": "RunTask"}, True),
    ("ecs:TagResource", TASK, {}, False),
    ("ecs:StopTask", TASK, {}, True),
    ("ecs:StopTask", ARN.format("ecs", "task/other/0f"), {}, False),
    ("ecs:DescribeTasks", TASK, {}, True),
    ("ecs:ExecuteCommand", TASK, {}, False),
    ("iam:PassRole", PUBLISHER, PASS, True),
    ("iam:PassRole", PROMOTER, PASS, True),
    ("iam:PassRole", EXECUTION, PASS, True),
    ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", PASS, False),
    ("iam:PassRole", PUBLISHER, {"iam:PassedToService": "ec2.amazonaws.com"}, False),
    ("sqs:ReceiveMessage", EVENTS, {}, True),
    ("sqs:PurgeQueue", EVENTS, {}, False),
    ("sqs:ReceiveMessage", ARN.format("sqs", "payroll"), {}, False),
    ("logs:GetLogEvents", LOG.format("prefect"), {}, True),
    ("logs:GetLogEvents", LOG.format("payroll"), {}, False),
    ("s3:GetObject", "arn:aws:s3:::models/x", {}, False),
]


@pytest.mark.parametrize(("action", "resource", "context", "allowed"), RIGHTS)
def test_a_submitter_has_the_least_rights(
    cloud: Cloud, action: str, resource: str, context: dict[str, str], allowed: bool
):
    assert allows(cloud.policy, action, resource, context) is allowed


def allows(policy: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a statement allows it; the policy has no Deny, and only conditions of equality."""
    return any(
        action in as_list(one["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in as_list(one["Resource"]))
        and all(
            context.get(key) == value
            for operands in one.get("Condition", {}).values()
            for key, value in operands.items()
        )
        for one in policy["Statement"]
    )


def test_the_policy_has_only_what_the_judge_knows(cloud: Cloud):
    assert {one["Effect"] for one in cloud.policy["Statement"]} == {"Allow"}
    operators = {name for one in cloud.policy["Statement"] for name in one.get("Condition", {})}
    assert operators == {"ArnEquals", "StringEquals"}


def test_a_worker_submits_watches_and_stops(cloud: Cloud):
    ecs, sqs, ec2 = (cloud.worker(service) for service in ("ecs", "sqs", "ec2"))
    made = ecs.register_task_definition(**definition("tracefleet-jit"))["taskDefinition"]
    assert ecs.describe_task_definition(taskDefinition=made["taskDefinitionArn"])
    [vpc] = ec2.describe_vpcs(Filters=[{"Name": "isDefault", "Values": ["true"]}])["Vpcs"]
    inside = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    subnets = [one["SubnetId"] for one in ec2.describe_subnets(Filters=inside)["Subnets"]]
    run = ecs.run_task(
        cluster="fleet",
        taskDefinition=made["taskDefinitionArn"],
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": {"subnets": subnets}},
        tags=[{"key": "prefect.io/flow-run-id", "value": "0f"}],
    )
    [task] = run["tasks"]
    assert ecs.describe_tasks(cluster="fleet", tasks=[task["taskArn"]])["tasks"]
    ecs.stop_task(cluster="fleet", task=task["taskArn"], reason="Stopped by Prefect worker")
    events = sqs.get_queue_url(QueueName="prefect-ecs-tasks-events")["QueueUrl"]
    [message] = sqs.receive_message(QueueUrl=events, MaxNumberOfMessages=1)["Messages"]
    handle = {"QueueUrl": events, "ReceiptHandle": message["ReceiptHandle"]}
    sqs.change_message_visibility(**handle, VisibilityTimeout=30)
    sqs.delete_message(**handle)


@pytest.mark.parametrize(
    ("service", "call", "arguments"),
    [
        ("ecs", "delete_cluster", {"cluster": "fleet"}),
        ("ecs", "deregister_task_definition", {"taskDefinition": "tracefleet-jit:1"}),
        ("sqs", "list_queues", {}),
        ("ec2", "describe_instances", {}),
        ("iam", "list_users", {}),
    ],
)
def test_a_worker_is_denied_all_else(
    cloud: Cloud, service: str, call: str, arguments: dict[str, str]
):
    with pytest.raises(botocore.exceptions.ClientError, match="not authorized"):
        getattr(cloud.worker(service), call)(**arguments)


def test_the_template_is_valid_and_agrees_with_the_pools():
    assert findings(ECS) == []  # tests/test_infra.py sees it find what is broken
    prefix = yaml.load(ECS, _Loader)["Parameters"]["Family"]["Default"]
    for name, template in job_templates.make().items():
        variables = template["variables"]["properties"]
        if name.startswith("ecs"):
            assert variables["family"]["default"].startswith(prefix)
            # What would need a further right is off.
            assert not variables["auto_deregister_task_definition"]["default"]


class _Loader(yaml.SafeLoader):
    """Reads past CloudFormation's functions."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: suffix)


# Kubernetes

OBJECTS = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(KUBERNETES)}
# The fields of each kind (Kubernetes 1.34 API reference).
FIELDS = {
    "Namespace": ("v1", set()),
    "ServiceAccount": ("v1", {"automountServiceAccountToken"}),
    "Role": ("rbac.authorization.k8s.io/v1", {"rules"}),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", {"roleRef", "subjects"}),
}
# What prefect-kubernetes calls, and some that it does not.
CALLS = [
    ("create", "batch", "jobs", True),  # worker.py
    ("delete", "batch", "jobs", True),
    ("get", "batch", "jobs", True),  # observer.py
    ("list", "batch", "jobs", True),
    ("watch", "batch", "jobs", True),
    ("list", "", "pods", True),
    ("watch", "", "pods", True),
    ("get", "", "pods/log", True),
    ("create", "", "pods", False),
    ("create", "", "pods/exec", False),
    ("get", "", "secrets", False),
    ("patch", "batch", "jobs", False),
    ("create", "rbac.authorization.k8s.io", "rolebindings", False),
]


def mistakes(one: dict[str, Any]) -> list[str]:
    """What the API server would refuse of an object, as far as our files go."""
    version, fields = FIELDS[one["kind"]]
    found = [] if one["apiVersion"] == version else [f"apiVersion {one['apiVersion']}"]
    found += sorted(one.keys() - fields - {"apiVersion", "kind", "metadata"})
    if one["kind"] != "Namespace" and one["metadata"].get("namespace") != NAMESPACE:
        found.append("namespace")
    for rule in one.get("rules", []):
        if rule.keys() != {"apiGroups", "resources", "verbs"}:
            found.append(f"rule {sorted(rule)}")
        found += ["*" for values in rule.values() if "*" in values]
    return found


def test_the_objects_are_what_kubernetes_takes():
    assert {kind for kind, _ in OBJECTS} == FIELDS.keys()
    for one in OBJECTS.values():
        assert mistakes(one) == []
    role = OBJECTS["Role", "tracefleet-worker"]
    assert mistakes({**role, "rule": []}) == ["rule"], "the control"
    assert mistakes({**role, "rules": [{"resources": ["*"]}]}) == ["rule ['resources']", "*"]


@pytest.mark.parametrize(("verb", "group", "resource", "allowed"), CALLS)
def test_a_worker_has_the_least_rights_there(verb: str, group: str, resource: str, allowed: bool):
    rules = OBJECTS["Role", "tracefleet-worker"]["rules"]
    found = any(
        group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
        for rule in rules
    )
    assert found is allowed


def test_only_the_worker_is_bound():
    [binding] = [one for (kind, _), one in OBJECTS.items() if kind == "RoleBinding"]
    role = binding["roleRef"]
    assert (role["kind"], role["name"]) in OBJECTS
    assert role["apiGroup"] == "rbac.authorization.k8s.io"
    subjects = [(one["kind"], one["name"], one["namespace"]) for one in binding["subjects"]]
    assert subjects == [("ServiceAccount", "tracefleet-worker", NAMESPACE)]
    assert OBJECTS["ServiceAccount", "tracefleet-run"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [one for one in job_templates.make() if "kubernetes" in one])
def test_the_namespace_takes_the_jobs(name: str):
    labels = OBJECTS["Namespace", NAMESPACE]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    manifest = job_templates.make()[name]["job_configuration"]["job_manifest"]
    pod = manifest["spec"]["template"]["spec"]
    assert violations(pod) == []
    assert violations({**pod, "volumes": [{"hostPath": {}}]}) == ["volumes"], "the control"
    assert violations({**pod, "securityContext": {}}) == ["runAsNonRoot", "seccompProfile"]


def violations(pod: dict[str, Any]) -> list[str]:
    """What the profile "restricted" has against a pod (Pod Security Standards, Kubernetes)."""
    context = pod["securityContext"]
    inner = [container["securityContext"] for container in pod["containers"]]
    volumes = [one for one in pod["volumes"] if one.keys() - {"name", "emptyDir"}]
    profile = context.get("seccompProfile", {}).get("type")
    rules = {
        "runAsNonRoot": context.get("runAsNonRoot") is True,
        "seccompProfile": profile == "RuntimeDefault",
        "allowPrivilegeEscalation": all(c["allowPrivilegeEscalation"] is False for c in inner),
        "capabilities": all(c["capabilities"] == {"drop": ["ALL"]} for c in inner),
        "volumes": not volumes,
        "host": not any(pod.get(f"host{kind}") for kind in ("Network", "PID", "IPC")),
    }
    return [rule for rule, holds in rules.items() if not holds]
